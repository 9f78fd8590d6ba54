"""Python, the packages of training and their versions, and whether they come from one installation."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from lorapipe_engine.doctor.finding import Finding
from lorapipe_engine.doctor.tested import NEWEST_PYTHON, OLDEST_PYTHON, TRAINING, Package, is_older

BITSANDBYTES = "bitsandbytes"


def python_finding() -> Finding:
    """Whether this Python can run the tools."""
    name = ".".join(map(str, sys.version_info[:3]))
    low, high = (".".join(map(str, one)) for one in (OLDEST_PYTHON, NEWEST_PYTHON))
    here = sys.version_info[:2]
    if here < OLDEST_PYTHON:
        return Finding("python", "stop", f"{name} is too old", f"install {low} to {high} and make a new venv")
    if here > NEWEST_PYTHON:
        return Finding("python", "note", f"{name} was not tested", f"{low} to {high} were")
    bits = "" if sys.maxsize > 2**32 else ", 32 bits"
    if bits:
        return Finding("python", "stop", f"{name} of 32 bits has no torch", "install the one of 64 bits")
    return Finding("python", "ok", f"{name} in {sys.prefix}")


def package_findings() -> Iterator[Finding]:
    """A line for each package that is missing, too old or not tested, and one for all that are as they were tested."""
    sound = []
    for package in TRAINING:
        problem = package_problem(package)
        if problem is None:
            sound.append(f"{package.name} {_version(package)}")
        else:
            yield problem
    if sound:
        yield Finding("packages", "ok", ", ".join(sound))


def package_problem(package: Package) -> Finding | None:
    """What is wrong with a package, by what is written of it beside it; it is not imported."""
    have = _version(package)
    install = f"pip install '{package.name}>={package.least}'"
    if find_spec(package.module) is None:
        return Finding(package.name, "stop", "not installed", install)
    if have is None:
        return Finding(package.name, "note", "there, but not installed by pip: its version is not known")
    if is_older(have, package.least):
        return Finding(package.name, "stop", f"{have} is older than {package.least}", f"{install} --upgrade")
    if is_older(package.tested, have) and have.split("+")[0] != package.tested:
        return Finding(package.name, "note", f"{have} is newer than {package.tested}, which was tested")
    return None


def _version(package: Package) -> str | None:
    try:
        return version(package.name)
    except PackageNotFoundError:
        return None


def mixed_findings() -> Iterator[Finding]:
    """Packages of several installations in one Python: what one brings does not fit the other's."""
    mend = f"make a venv without --system-site-packages and install into it: {sys.executable} -m venv NEW"
    homes: dict[str, list[str]] = {}
    for package in TRAINING:
        spec = find_spec(package.module)
        if spec is not None and spec.origin:
            homes.setdefault(str(Path(spec.origin).parent.parent), []).append(package.name)
    if len(homes) > 1:
        shown = "; ".join(f"{', '.join(names)} from {home}" for home, names in homes.items())
        yield Finding("mixed packages", "note", shown, mend)
    elif _sees_system():
        yield Finding("mixed packages", "note", "this venv sees the system's packages too", mend)


def _sees_system() -> bool:
    try:
        text = Path(sys.prefix, "pyvenv.cfg").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    rows = (line.partition("=") for line in text.lower().splitlines())
    return any(
        key.strip() == "include-system-site-packages" and value.strip() == "true" for key, _, value in rows
    )


def bitsandbytes_finding(wanted_by: str | None) -> Finding:
    """Whether 8-bit optimizers and 4-bit weights can be had. ``wanted_by``: the option that asks for one."""
    if find_spec(BITSANDBYTES) is not None:
        return Finding(BITSANDBYTES, "ok", "installed")
    mend = "pip install bitsandbytes"
    if wanted_by is None:
        return Finding(BITSANDBYTES, "note", "not installed: AdamW8bit and nf4 cannot be had", mend)
    return Finding(
        BITSANDBYTES, "stop", f"not installed, and {wanted_by} needs it", f"{mend}, or leave that out"
    )
