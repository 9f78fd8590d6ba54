"""Captions into files, without ever losing what stood there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from lorapipe_engine.changes.filebytes import read_stamped
from lorapipe_engine.changes.journal import Change, ChangedMeanwhile, Journal
from lorapipe_engine.errors import InputError, LoraError
from lorapipe_engine.files.links import read_within
from lorapipe_engine.pictures.captions import decode_caption
from lorapipe_engine.pictures.joining import join_captions
from lorapipe_tagger.scoring.select import spelling
from lorapipe_tagger.settings import Existing

TOOL = "lora-tag"
EXISTING: tuple[Existing, ...] = ("skip", "append", "prepend", "replace", "merge")


def read_existing(path: Path) -> str | None:
    """The caption that a file holds, all its lines; None where there is no file or nothing in it.

    Raises InputError if it cannot be read, is not UTF-8, or is a link out of its folder: what that leads to would end
    in a dataset, and in all that is made of it.
    """
    try:
        return _text_of(read_within(path, None), path)
    except FileNotFoundError:
        _refuse_dead_link(path)
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _refuse_dead_link(path: Path) -> None:
    """Raise InputError for a name that is there and leads nowhere: no file can be put in its place."""
    if path.is_symlink():
        raise InputError(f"{path}: a link to a file that is not there; remove it")


def read_shown(path: Path) -> str | None:
    """The caption that a dry run shows as the one to be replaced, whatever it is written in. Raises InputError as
    :func:`read_existing` does for a file that cannot be read.
    """
    try:
        data = read_within(path, None)
    except FileNotFoundError:
        _refuse_dead_link(path)
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        return _text_of(data, path)
    except InputError:
        return data.decode("utf-8", "backslashreplace").strip("\r\n")


def _text_of(data: bytes | None, path: Path) -> str | None:
    text = "" if data is None else decode_caption(data, path)
    return text.strip("\r\n") if text.strip() else None


def join_existing(
    before: str | None, tags: Sequence[str], mode: Existing, separator: str, *, front: int = 0
) -> str:
    """The caption to write: ``tags`` joined, or put together with the one ``before`` as
    :func:`~lorapipe_engine.pictures.joining.join_captions` does. ``front``: how many tags in front
    are a trigger and the like.
    """
    if before is None or mode == "replace" or mode == "skip":
        unique: dict[str, str] = {}
        for tag in tags:
            unique.setdefault(_key(tag), tag)
        return separator.join(unique.values())
    return join_captions(before, tags, mode, separator, _key, front=front)


def _key(tag: str) -> str:
    """One form for the spellings of a tag, escaped or not."""
    return spelling(tag.replace("\\(", "(").replace("\\)", ")"))


@dataclass
class _Order:
    """A caption to write, and what came of it."""

    path: Path
    text: str
    before: str | None
    replace: bool
    done: bool = False
    error: Exception | None = None


class CaptionWriter:
    """Writes captions with a journal, from several threads.

    Threads that wait for a folder have their captions written together, under one lock and with one wait for the disk.
    """

    def __init__(self) -> None:
        self._journal = Journal(TOOL)
        self._waiting: dict[tuple[Path, Path | None], list[_Order]] = {}
        self._guard, self._writing = Lock(), Lock()
        self.folders: dict[Path, None] = {}

    def write(
        self, path: Path, text: str, *, before: str | None, replace: bool, root: Path | None = None
    ) -> None:
        """Write a caption and a line end, in UTF-8: the file is the old one or the whole new one at any time. No link
        below ``root`` is followed.

        Unless ``replace``, a file that no longer holds ``before`` stays as it is, and ChangedMeanwhile is raised; that
        is looked at while the folder is locked, as the other tools lock it. Raises LoraError or OSError.
        """
        order, place = _Order(path, text, before, replace), (path.parent, root)
        with self._guard:
            self._waiting.setdefault(place, []).append(order)
        with self._writing:
            if not order.done:
                with self._guard:
                    orders = self._waiting.pop(place)
                self._write_all(*place, orders)
        if order.error is not None:
            raise order.error

    def _write_all(self, folder: Path, root: Path | None, orders: Sequence[_Order]) -> None:
        try:
            with self._journal.folder(folder, root) as desk:
                changes = [change for order in orders if (change := _change(order)) is not None]
                failures = desk.write(changes)
            for order in orders:
                order.error = order.error or failures.get(order.path.name)
            if len(failures) < len(changes):
                self.folders[folder] = None
        except (LoraError, OSError) as error:
            for order in orders:
                order.error = order.error or error
        finally:
            for order in orders:
                order.done = True


def _change(order: _Order) -> Change | None:
    """What becomes of a caption's file; None, with the order's error, where it is left alone."""
    try:
        data, stamp = read_stamped(order.path)
        if not order.replace and _text_of(data, order.path) != order.before:
            raise ChangedMeanwhile(f"{order.path}: another program has just written it, so it is left alone")
        new = f"{order.text}\n".encode("utf-8", "surrogateescape")
        return Change(order.path.name, data, new, stamp) if new != data else None
    except (LoraError, OSError) as error:
        order.error = error
        return None


def difference(before: str | None, after: str) -> str:
    """What a dry run shows of a caption: removed and new lines."""
    if before == after:
        return "  (unchanged)"
    old = [f"- {line}" for line in (before or "").splitlines()]
    return "\n".join([*old, *(f"+ {line}" for line in after.splitlines() or [""])])
