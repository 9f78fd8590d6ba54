"""One run for one output: a second one that would write the same files is refused while the first is alive.

The claim is a hidden file beside the results, locked by the system for as long as the process lives, so that a crash
leaves nothing that has to be taken away. A folder may be shared by machines whose locks do not reach each other, or
have no locks at all. So the file also says which process of which machine has it, and its holder writes to it every
:data:`BEAT` seconds: who meets the claim of another machine, or cannot lock, watches the file before it takes it.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import ConfigError, OutputError
from lorapipe_engine.files.writing.locking import open_lock_file, try_lock_file
from lorapipe_engine.settings import RunSettings

BEAT = 10.0  # seconds between signs of life
WATCH = 35.0  # seconds without a sign, after which a claim that no lock tells of is a dead run's
SETTLE = 1.0  # seconds in which two that take one claim without a lock see each other
_MOST = 4096  # bytes of a claim


def claim_file(run: RunSettings) -> Path:
    """Where the claim of a run on its output stands while it runs."""
    return run.output_dir / f".{run.output_name}.lock"


@contextmanager
def claimed(run: RunSettings) -> Iterator[None]:
    """Have the output of ``run``, whose folder is there, for this process alone while the block runs.

    Raises ConfigError, naming process, machine and start, while another run has it; OutputError where the claim cannot
    be written.
    """
    path = claim_file(run)
    try:
        descriptor, text = _take(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written and locked ({error.strerror})") from error
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(descriptor, text, ended), daemon=True)
    try:
        beating.start()
        yield
    finally:
        ended.set()
        if beating.ident is not None:
            beating.join()
        _give_up(path, descriptor)


def _take(path: Path) -> tuple[int, dict[str, Any]]:
    """A descriptor of the claim, locked where that can be, and what was written to it."""
    for _ in range(100):
        descriptor = open_lock_file(path)
        try:
            locked = try_lock_file(descriptor)
            if locked is False:
                raise _refusal(path, _read(descriptor))
            if _is_at(path, descriptor):  # else the last holder has just taken it away
                before = _read(descriptor)
                alone = locked and (not before or _row(before).get("host") == socket.gethostname())
                if before and not alone:
                    _watch(path, before)
                row = _own_row()
                _write(descriptor, row)
                if not alone:
                    _settle(path, row)
                return descriptor, row
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise OutputError(f"{path}: is made and taken away again and again by other runs; try again")


def _own_row() -> dict[str, Any]:
    began = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    host = socket.gethostname()
    return {"process": os.getpid(), "host": host, "began": began, "token": secrets.token_hex(8), "beat": 0}


def _watch(path: Path, before: str) -> None:
    """Return when the holder of a claim gives no sign of life. Raises ConfigError when it does."""
    say(
        f"{path}: {_holder(before)} may still train into this output; looking for {WATCH:.0f} s whether it does"
    )
    until = time.monotonic() + WATCH
    while time.monotonic() < until:
        time.sleep(min(1.0, WATCH / 10))
        now = _read_anew(path)
        if now and now != before:
            raise _refusal(path, now)


def _settle(path: Path, row: dict[str, Any]) -> None:
    """Raise ConfigError where another run has written its claim over this one's at the same time."""
    time.sleep(SETTLE)
    now = _read_anew(path)
    if _row(now).get("token") != row["token"]:
        raise _refusal(path, now)


def _refusal(path: Path, text: str) -> ConfigError:
    output = path.with_name(path.name.removeprefix(".").removesuffix(".lock"))
    return ConfigError(
        f"{output}: {_holder(text)} trains into this output; wait for it, stop it, or choose another --output_name or "
        "--output_dir"
    )


def _holder(text: str) -> str:
    row = _row(text)
    if not row:
        return "another run"
    host = row["host"]
    where = f"this machine ({host})" if host == socket.gethostname() else f"the machine {host}"
    return f"process {row['process']} of {where}, begun {row['began']},"


def _row(text: str) -> dict[str, Any]:
    """A claim as it was written; nothing where it is not whole or no claim."""
    with suppress(ValueError, RecursionError):
        row = json.loads(text)
        whole = isinstance(row, dict) and type(row.get("process")) is int
        names = ("host", "began", "token")
        if whole and all(isinstance(row.get(name), str) and len(row[name]) < 256 for name in names):
            return dict(row)
    return {}


def _beat(descriptor: int, row: dict[str, Any], ended: threading.Event) -> None:
    """Give a sign of life now and then; a file system that is away for a while is tried again."""
    while not ended.wait(BEAT):
        row["beat"] += 1
        with suppress(OSError):
            _write(descriptor, row)


# -------------------------------------------------------------------------------- the file


def _read(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, _MOST).decode("utf-8", "replace").strip()


def _read_anew(path: Path) -> str:
    """What the file holds, opened again, which makes a network file system ask its server."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return ""
    try:
        return _read(descriptor)
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def _write(descriptor: int, row: dict[str, Any]) -> None:
    data = json.dumps(row).encode() + b"\n"
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, data)
    os.ftruncate(descriptor, len(data))
    os.fsync(descriptor)  # so that other machines see it


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        there, ours = os.lstat(path), os.fstat(descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _give_up(path: Path, descriptor: int) -> None:
    """Take the claim away while it is locked, so that nobody locks what is about to go; Windows lets nobody take away
    what is open."""
    if os.name == "nt":
        os.close(descriptor)
        with suppress(OSError):
            path.unlink()
        return
    with suppress(OSError):
        if _is_at(path, descriptor):
            path.unlink()
    os.close(descriptor)
