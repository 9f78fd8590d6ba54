"""Changes that can be taken back: what is done is written down first, what is replaced or removed is kept.

In the dataset's hidden folder ``.lorapipe`` each run of ``--fix`` has a folder with ``steps.jsonl``, an object a step,
and the files that were removed or replaced. A step stands on the disk before it is done, so an interrupted run can be
taken back too; undoing looks at the files to see which steps were done.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lorapipe_engine.atomic import atomic_write
from lorapipe_engine.errors import InputError, OutputError

HIDDEN = ".lorapipe"
STEPS = "steps.jsonl"


@dataclass
class Ledger:
    """The changes of one run to the files under ``root``."""

    root: Path
    folder: Path
    file: TextIO
    count: int = 0

    def rewrite(self, path: Path, old: bytes, new: bytes) -> None:
        """Replace a file's bytes. Raises OutputError if it no longer holds ``old``."""
        if path.read_bytes() != old:
            raise OutputError(f"{path}: another program has just changed it; left as it is")
        kept = self._kept_name()
        with atomic_write(self.folder / kept) as file:
            file.write(old)
        self._note("rewrite", path, kept=kept, new=_digest(new))
        with atomic_write(path, force=True) as file:
            file.write(new)

    def remove(self, path: Path) -> None:
        """Move a file out of the dataset, to where undoing finds it."""
        kept = self._kept_name()
        self._note("remove", path, kept=kept)
        path.rename(self.folder / kept)

    def rename(self, path: Path, target: Path) -> None:
        """Give a file another name, which must be free."""
        if os.path.lexists(target):
            raise OutputError(f"{target}: exists already; {path.name} keeps its name")
        self._note("rename", path, target=_relative(target, self.root))
        path.rename(target)

    def create(self, path: Path, data: bytes) -> None:
        """Write a file that is not there yet."""
        self._note("create", path, new=_digest(data))
        with atomic_write(path) as file:
            file.write(data)

    def _kept_name(self) -> str:
        self.count += 1
        return f"{self.count:06}"

    def _note(self, action: str, path: Path, **facts: str) -> None:
        row = {"action": action, "path": _relative(path, self.root), **facts}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())


@contextmanager
def open_ledger(root: Path) -> Iterator[Ledger]:
    """A new ledger; one without a step leaves no trace. Raises OutputError where the dataset may not be written to."""
    folder = root / HIDDEN / f"fix-{time.time_ns():020}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
        file = (folder / STEPS).open("x", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); nothing was changed") from error
    try:
        with file:
            yield Ledger(root, folder, file)
    finally:
        if (folder / STEPS).stat().st_size == 0:
            _clear(folder)


def _relative(path: Path, root: Path) -> str:
    """The path as it is found from the root: the dataset may be moved before it is undone."""
    return os.path.relpath(path, root)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


# -------------------------------------------------------------------------------- taking back


@dataclass(frozen=True)
class Undone:
    """What undoing did: lines that tell it, and files that were changed since and stay as they are."""

    lines: tuple[str, ...]
    left: tuple[str, ...]


def undo_last(root: Path, *, dry_run: bool = False) -> Undone:
    """Take back the last run's changes under ``root``, the last one first.

    Raises InputError where there is none. Files that were changed since are left alone and named; the ledger then
    stays too.
    """
    runs = sorted((root / HIDDEN).glob(f"fix-*/{STEPS}"))
    if not runs:
        raise InputError(f"{root}: there is no --fix to take back")
    lines: list[str] = []
    left: list[str] = []
    for step in reversed(_read_steps(runs[-1])):
        path = root / step["path"]
        try:
            told = _UNDO[step["action"]](step, path, runs[-1].parent, root, dry_run)
        except _Changed as reason:
            left.append(f"{path}: {reason}")
            continue
        lines += [told] if told else []
    if not left and not dry_run:
        _clear(runs[-1].parent)
    return Undone(tuple(lines), tuple(left))


class _Changed(Exception):
    """A file is not as the run left it."""


def _read_steps(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        # A line that was not written whole belongs to a step that was not done.
        whole = [line for line in lines if line.endswith("}")]
        steps: list[dict[str, Any]] = [json.loads(line) for line in whole]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read, so nothing was taken back") from error
    if any(step.get("action") not in _UNDO or not isinstance(step.get("path"), str) for step in steps):
        raise InputError(f"{path}: not a list of changes, so nothing was taken back")
    return steps


def _undo_rewrite(step: dict[str, Any], path: Path, folder: Path, _root: Path, dry_run: bool) -> str | None:
    old = (folder / step["kept"]).read_bytes()
    now = path.read_bytes() if path.is_file() else None
    if now == old:
        return None
    if now is None or _digest(now) != step["new"]:
        raise _Changed("was changed or removed since")
    if not dry_run:
        with atomic_write(path, force=True) as file:
            file.write(old)
    return f"{path}: old text"


def _undo_remove(step: dict[str, Any], path: Path, folder: Path, _root: Path, dry_run: bool) -> str | None:
    kept = folder / step["kept"]
    if not os.path.lexists(kept):
        return None
    if os.path.lexists(path):
        raise _Changed("there is a new file of this name")
    if not dry_run:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept.rename(path)
    return f"{path}: back"


def _undo_rename(step: dict[str, Any], path: Path, _folder: Path, root: Path, dry_run: bool) -> str | None:
    target = root / step["target"]
    if os.path.lexists(path) and not os.path.lexists(target):
        return None
    if os.path.lexists(path):
        raise _Changed("there is a new file of this name")
    if not os.path.lexists(target):
        raise _Changed(f"{target.name} is gone")
    if not dry_run:
        target.rename(path)
    return f"{path}: old name"


def _undo_create(step: dict[str, Any], path: Path, _folder: Path, _root: Path, dry_run: bool) -> str | None:
    if not path.is_file():
        return None
    if _digest(path.read_bytes()) != step["new"]:
        raise _Changed("was changed since")
    if not dry_run:
        path.unlink()
    return f"{path}: removed again"


_UNDO: dict[str, Callable[[dict[str, Any], Path, Path, Path, bool], str | None]] = {
    "rewrite": _undo_rewrite,
    "remove": _undo_remove,
    "rename": _undo_rename,
    "create": _undo_create,
}
