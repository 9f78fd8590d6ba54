"""The processes of a launcher, found on Linux."""

from __future__ import annotations

from pathlib import Path


def processes_of(out: Path) -> list[int]:
    """The processes that train into a folder, in order of their ranks."""
    ranks = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if str(out).encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                words = (folder / "environ").read_bytes().split(b"\0")
                ranks[next(word for word in words if word.startswith(b"RANK="))] = int(folder.name)
        except (OSError, StopIteration):
            continue
    return [pid for _, pid in sorted(ranks.items())]
