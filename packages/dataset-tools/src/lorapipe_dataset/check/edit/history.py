"""The edits of this run of the server, so that each can be taken back and done again.

Taking back is the journal's own ``--undo`` of one run. What somebody took back on the command line meanwhile is no more
in the list: its journal is gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lorapipe_dataset.check.edit.shelf import version_of
from lorapipe_dataset.check.edit.writing import Written
from lorapipe_dataset.check.repairs.fix import TOOL
from lorapipe_engine.changes.filebytes import read_bytes
from lorapipe_engine.changes.journal import ENDING, HIDDEN
from lorapipe_engine.changes.undo import undo


@dataclass
class Done:
    """An edit that was made. ``captions``: the files with the versions that it gave them; ``ids``: the pictures it was
    asked for; ``out``: whether they were left out, None for an edit of captions. ``folders``: where its journal lies.
    """

    run: str
    label: str
    ids: tuple[int, ...]
    captions: Mapping[Path, str | None]
    folders: frozenset[Path]
    out: bool | None = None

    @property
    def is_there(self) -> bool:
        """Whether its journal is still there."""
        name = f"{self.run}{ENDING}"
        return any((folder / HIDDEN / name).is_file() for folder in self.folders)


@dataclass
class Undone:
    """An edit that was taken back. ``held``: what its files held, by path; ``now``: the versions that they have now."""

    done: Done
    held: dict[Path, bytes] = field(default_factory=dict)
    now: dict[Path, str | None] = field(default_factory=dict)


class History:
    """What can be taken back, and what can be done again."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._done: list[Done] = []
        self._undone: list[Undone] = []

    def add(self, done: Done, *, again: bool = False) -> None:
        """An edit was made; ``again``: it is one that had been taken back."""
        self._done.append(done)
        if not again:
            self._undone.clear()

    def last(self) -> Done | None:
        """The edit that would be taken back."""
        while self._done and not self._done[-1].is_there:
            self._done.pop()
        return self._done[-1] if self._done else None

    def next(self) -> Undone | None:
        """The edit that would be done again."""
        return self._undone[-1] if self._undone else None

    def as_record(self) -> dict[str, dict[str, object] | None]:
        """What the page shows of both."""
        last, after = self.last(), self.next()
        return {
            "undo": {"count": len(self._done), "label": last.label} if last else None,
            "redo": {"count": len(self._undone), "label": after.done.label} if after else None,
        }

    def take_back(self, done: Done) -> tuple[list[Path], list[str]]:
        """Take the last edit back: the files that somebody changed since, and what else could not be.

        Raises LoraError where nothing was done.
        """
        undone, foreign = Undone(done), []
        for path, version in done.captions.items():
            data = _held(path)
            if version_of(data) == version and data is not None:
                undone.held[path] = data
            else:
                foreign.append(path)
        result = undo([self._root], TOOL, run=done.run)
        self._done.remove(done)
        undone.now = {path: version_of(_held(path)) for path in undone.held}
        self._undone.append(undone)
        return foreign, [line for line in result.failures if not _is_about(line, foreign)]

    def take_next(self) -> Undone:
        """The edit that is done again, taken off the list."""
        return self._undone.pop()


def folders_of(written: Written, pictures: Iterable[Path]) -> frozenset[Path]:
    """The folders that have a journal of an edit."""
    return frozenset(path.parent for path in (*written.captions, *pictures))


def _held(path: Path) -> bytes | None:
    try:
        return read_bytes(path)
    except OSError:
        return None


def _is_about(line: str, paths: Iterable[Path]) -> bool:
    return any(line.startswith(f"{path}: ") for path in paths)
