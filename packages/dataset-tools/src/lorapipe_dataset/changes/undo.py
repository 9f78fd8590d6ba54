"""Taking back what a run changed, by its journal (:mod:`lorapipe_dataset.changes.journal`)."""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorapipe_dataset.changes.filebytes import digest, mode_of, move, read_bytes, write_new
from lorapipe_dataset.changes.journal import ENDING, HIDDEN, KEPT, OLD, clear
from lorapipe_engine.errors import InputError, LoraError, OutputError
from lorapipe_engine.files.locking import locked


@dataclass
class Undone:
    """What :func:`undo` did: the run, the files that are as before it, and what could not be put back."""

    run: str
    restored: list[Path] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def undo(folders: Sequence[Path], tool: str, *, dry_run: bool = False) -> Undone:
    """Take the newest run of ``tool`` in ``folders`` (and below them) back, byte for byte.

    A file that was changed since that run is left as it is and told in ``failures``; the journal is kept then. May be
    repeated to go further back. Raises InputError where there is nothing to take back.
    """
    found = sorted(
        (path for folder in folders for path in _journals(folder, tool)), key=lambda path: path.name
    )
    if not found:
        raise InputError(f"{folders[0]}: no run of {tool} to undo there")
    result = Undone(found[-1].name.removesuffix(ENDING))
    for journal in sorted({path for path in found if path.name == found[-1].name}):
        folder = journal.parent.parent
        with locked(folder):
            _undo_folder(journal, folder, result, dry_run)
    return result


def _journals(folder: Path, tool: str) -> Iterator[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: {'not a folder' if folder.exists() else 'no such folder'}")
    for parent, names, _ in os.walk(folder):
        if HIDDEN in names:
            yield from Path(parent, HIDDEN).glob(f"*-{tool}-*{ENDING}")
        names[:] = [name for name in names if not name.startswith(".")]


def _undo_folder(journal: Path, folder: Path, result: Undone, dry_run: bool) -> None:
    failures: list[str] = []
    for entry in reversed(_entries(journal)):
        try:
            name = _checked(entry["name"])
            old = journal.with_suffix(OLD) / name if "old" in entry else None
            if (
                _bring_back(old, folder / name, entry, dry_run)
                if old
                else _put_back(folder, name, entry, dry_run)
            ):
                result.restored.append(folder / name)
        except LoraError as error:
            failures.append(f"{error}; see {journal}")
        except OSError as error:
            failures.append(f"{folder / entry['name']}: cannot be put back ({error.strerror})")
    result.failures += failures
    if dry_run:
        return
    if hasattr(os, "sync"):
        os.sync()  # the journal goes when the files are safe
    if failures:
        journal.replace(journal.with_name(f"{journal.name}{KEPT}"))
        return
    journal.unlink()
    clear(journal.parent)
    with suppress(OSError):
        journal.with_suffix(OLD).rmdir()
    with suppress(OSError):  # other runs have journals there
        journal.parent.rmdir()


def _entries(journal: Path) -> list[dict[str, Any]]:
    """The changes in a journal. A last line that is not whole never came to be a change."""
    lines = journal.read_bytes().split(b"\n")
    try:
        return [json.loads(line) for line in lines[:-1]]
    except ValueError as error:
        raise InputError(f"{journal}: damaged; nothing was taken back") from error


def _checked(name: Any) -> str:
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise InputError(f"{name!r}: not a file of this folder")
    return name


def _bring_back(old: Path, path: Path, entry: Mapping[str, Any], dry_run: bool) -> bool:
    """Give an old file its place again; False where it had never left it. Raises OutputError or OSError."""
    if not os.path.lexists(old):
        return False
    now = read_bytes(path)
    # What a killed run had made ready lies there before it takes the old one's place.
    left = _inode(path) == entry.get("inode") and _inode(old) != entry.get("inode")
    if left or now == read_bytes(old) or _inode(path) == _inode(old):
        if not dry_run:
            old.unlink()
        return False
    if now is None or digest(now) != entry["after"]:
        raise OutputError(f"{path}: changed since, left alone")
    if not dry_run:
        old.replace(path)
    return True


def _inode(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except OSError:
        return None


def _put_back(folder: Path, name: str, entry: Mapping[str, Any], dry_run: bool) -> bool:
    """Undo a change; False where it had never been made. Raises LoraError or OSError."""
    path = folder / name
    if "kept" in entry or "renamed" in entry:
        place = (
            folder / HIDDEN / _checked(entry["kept"])
            if "kept" in entry
            else folder / _checked(entry["renamed"])
        )
        if not os.path.lexists(place):
            return False
        if os.path.lexists(path):
            raise OutputError(f"{path}: there is a new file of that name, left alone")
        if not dry_run:
            move(place, path)
        return True
    before = _bytes(entry)
    now = read_bytes(path)
    if now == before:
        return False
    if now is None or digest(now) != entry["after"]:
        raise OutputError(f"{path}: changed since, left alone")
    if not dry_run:
        if before is None:
            path.unlink()
        else:
            temporary = folder / HIDDEN / f"{secrets.token_hex(6)}.tmp"
            if "link" in entry:
                temporary.symlink_to(entry["link"])
            else:
                write_new(temporary, before, mode_of(path))
            temporary.replace(path)
    return True


def _bytes(entry: Mapping[str, Any]) -> bytes | None:
    if "before_base64" in entry:
        return base64.b64decode(entry["before_base64"])
    before = entry["before"]
    return before.encode() if before is not None else None
