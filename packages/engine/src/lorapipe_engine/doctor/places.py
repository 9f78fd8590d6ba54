"""Room and rights on the disk, the machine's memory, and what Windows needs besides."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lorapipe_engine.doctor.finding import Finding
from lorapipe_engine.errors import OutputError
from lorapipe_engine.files.cachefolder import cache_folder
from lorapipe_engine.files.writing.atomic import probe_folder

GIB = 2**30
LEAST_ROOM = 0.5  # GiB for networks and the state of a run
ROOM = 5.0  # GiB for a run of many epochs at rank 64 with its states
LEAST_MEMORY = 4.0  # GiB that are free: a base of SD 1.x in float16 is read into 2


def output_findings(folder: Path) -> Iterator[Finding]:
    """Whether results can be written, and how much room they have."""
    place = standing(folder)
    name = "output_dir"
    if not place.is_dir():
        yield Finding(name, "stop", f"{place} is a file, not a folder", "choose another --output_dir")
        return
    try:
        probe_folder(place)
    except (OSError, OutputError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        mend = "choose another --output_dir, or give yourself the right to write there"
        yield Finding(name, "stop", f"{place} cannot be written to ({reason})", mend)
        return
    yield room_finding(name, folder, place)


def room_finding(name: str, folder: Path, place: Path) -> Finding:
    """How much room a folder that can be written to has; it may still have to be made in ``place``."""
    free = shutil.disk_usage(place).free / GIB
    mend = "make room, or choose another --output_dir; --save_last_n_epochs keeps fewer networks"
    if free < LEAST_ROOM:
        return Finding(name, "stop", f"{folder} has only {free:.2f} GiB free", mend)
    if free < ROOM:
        return Finding(name, "note", f"{folder} has {free:.1f} GiB free", mend)
    return Finding(name, "ok", f"{folder} can be written to, {free:.0f} GiB free")


def cache_finding(given: Path | None) -> Finding:
    """Where latents are kept for later runs, and whether they can be."""
    folder = given or cache_folder() / "latents"
    place = standing(folder)
    try:
        probe_folder(place)
    except (OSError, OutputError):
        return Finding(
            "cache",
            "note",
            f"{folder} cannot be written to: --cache_latents_to_disk fails",
            "give --cache_dir",
        )
    free = shutil.disk_usage(place).free / GIB
    return Finding("cache", "ok", f"latents kept for later runs lie in {folder}, {free:.0f} GiB free")


def standing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    path = folder.expanduser().absolute()
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def memory_finding() -> Finding | None:
    """The machine's memory; None where the system does not tell it."""
    free = free_memory()
    if free is None:
        return None
    mend = "close other programs; a base is read into memory before it goes to the card"
    if free / GIB < LEAST_MEMORY:
        return Finding("memory", "note", f"{free / GIB:.1f} GiB are free", mend)
    return Finding("memory", "ok", f"{free / GIB:.1f} GiB are free")


def free_memory() -> int | None:
    """Bytes of memory that programs can have."""
    if sys.platform == "win32":
        return _windows_memory()
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(OSError, ValueError, AttributeError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _windows_memory() -> int | None:
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("all", "free", "pages", "free_pages", "virtual")),
            *((name, ctypes.c_ulonglong) for name in ("free_virtual", "extended")),
        ]

    status = Status(length=ctypes.sizeof(Status))
    library = getattr(ctypes, "windll").kernel32  # noqa: B009 - it is there on Windows alone
    done = library.GlobalMemoryStatusEx(ctypes.byref(status))
    return int(status.free) if done else None


def windows_findings() -> list[Finding]:
    """What torch and long paths need on Windows; nothing elsewhere."""
    findings: list[Finding] = []
    if sys.platform == "win32":
        findings.append(_visual_cpp())
        if not _has_long_paths():
            mend = "keep datasets near the drive's root, or set LongPathsEnabled to 1 in the registry"
            findings.append(Finding("long paths", "note", "paths end at 260 letters", mend))
    return findings


def _visual_cpp() -> Finding:
    import ctypes

    for name in ("vcruntime140_1.dll", "msvcp140.dll"):
        try:
            ctypes.CDLL(name)
        except OSError:
            mend = "install https://aka.ms/vs/17/release/vc_redist.x64.exe"
            return Finding("visual c++", "stop", f"{name} is missing, which torch needs", mend)
    return Finding("visual c++", "ok", "its runtime is installed")


def _has_long_paths() -> bool:
    allowed = False
    if sys.platform == "win32":
        import winreg

        place = r"SYSTEM\CurrentControlSet\Control\FileSystem"
        with suppress(OSError), winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, place) as key:
            allowed = bool(winreg.QueryValueEx(key, "LongPathsEnabled")[0])
    return allowed
