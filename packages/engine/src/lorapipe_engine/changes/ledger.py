"""The list of runs that this user's tools made, kept outside the datasets (in the user's state folder).

A dataset may come with journals in it. What one of them says would be done by ``--undo``: files moved, deleted, brought
back. So a journal counts as the user's own only if it stands in this list: by its run and folder, and by its content
(a digest of the bytes that were written), or, of a run that was killed, by the number of its file.

JSON lines; one when a journal is made, one when it is closed. The last line of a run and folder counts.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from lorapipe_engine.changes.filebytes import digest, write_all
from lorapipe_engine.errors import LoraError
from lorapipe_engine.files.cachefolder import state_folder
from lorapipe_engine.files.writing.atomic import atomic_write
from lorapipe_engine.files.writing.locking import locked

NAME = "runs.jsonl"
_MOST = 1 << 23  # bytes; about 30,000 runs. What is older than the newer half is forgotten then
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class Known(NamedTuple):
    """A journal as the list has it: the number of its file; its size and digest where it was closed."""

    inode: int
    size: int | None = None
    digest: str | None = None


def remember(folder: str, run: str, known: Known) -> None:
    """Note a journal of ``run`` in ``folder`` (a real path). Raises OSError or LoraError where that cannot be done."""
    home = state_folder()
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    line = json.dumps({"run": run, "folder": folder, **known._asdict()}).encode("ascii") + b"\n"
    with locked(home):
        descriptor = os.open(home / NAME, _APPEND, 0o600)
        try:
            write_all(descriptor, line)
            large = os.fstat(descriptor).st_size > _MOST
        finally:
            os.close(descriptor)
        if large:
            _forget_half(home / NAME)


def _forget_half(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    with atomic_write(path, force=True) as file:
        file.writelines(lines[len(lines) // 2 :])


def remembered() -> dict[tuple[str, str], Known]:
    """All journals of the list, by folder and run; none where it cannot be read."""
    rows: dict[tuple[str, str], Known] = {}
    with suppress(OSError, LoraError):
        for line in (state_folder() / NAME).read_bytes().splitlines():
            # Another version may write other lines.
            with suppress(ValueError, RecursionError, KeyError, TypeError):
                row: dict[str, Any] = json.loads(line)
                rows[str(row["folder"]), str(row["run"])] = Known(row["inode"], row["size"], row["digest"])
    return rows


def is_own(known: Known | None, data: bytes, inode: int) -> bool:
    """Whether a journal that holds ``data`` is the one that the list has."""
    if known is None:
        return False
    same_file = type(known.inode) is int and known.inode > 0 and known.inode == inode
    if type(known.size) is not int:
        return same_file
    # Of a run that was killed later, more lines may follow.
    return digest(data[: known.size]) == known.digest and (same_file or len(data) == known.size)
