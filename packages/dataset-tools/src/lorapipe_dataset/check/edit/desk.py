"""Where edits are made: one at a time, on the disk before the answer, and with what came of each in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lorapipe_dataset.check.edit.answers import findings_record, page_record, picture_record
from lorapipe_dataset.check.edit.asked import Edit
from lorapipe_dataset.check.edit.hints import Hints
from lorapipe_dataset.check.edit.history import Done, History, folders_of
from lorapipe_dataset.check.edit.judge import Judge
from lorapipe_dataset.check.edit.rewrite import rewriter
from lorapipe_dataset.check.edit.shelf import Item, Shelf
from lorapipe_dataset.check.edit.writing import Written, by_text, move_out, write_captions
from lorapipe_dataset.clean.captions.tags import MARK
from lorapipe_engine.errors import InputError, LoraError


class Closed(LoraError):
    """The server is ending: nothing is written any more."""


class Desk:
    """The pictures, the report on them, and the edits of this run. Threads wait for each other."""

    def __init__(self, shelf: Shelf, judge: Judge, hints: Hints, words: list[list[Any]]) -> None:
        self.shelf = shelf
        self._judge = judge
        self._hints = hints
        self._words = words
        self._history = History(shelf.root)
        self._lock = threading.RLock()
        self._closed = False

    def close(self) -> None:
        """Wait for the edit that is being made; none is made afterwards."""
        with self._lock:
            self._closed = True

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise Closed("lora-check is ending; nothing was changed")
            self.shelf.refresh()
            yield

    # ------------------------------------------------------------------------ what is there

    def item(self, number: int) -> Item | None:
        """A picture by its number; None for one that is none, or gone."""
        items = self.shelf.items
        return items[number] if number < len(items) and not items[number].gone else None

    def page(self) -> dict[str, Any]:
        """All that the page begins with."""
        with self._at_work():
            more = {
                "revision": self.shelf.revision,
                "words": self._words,
                "hints": bool(self._hints),
                "marker": MARK,
                **self._history.as_record(),
            }
            return page_record(self._judge.report(), self.shelf, self._hints, more)

    def state(self) -> dict[str, Any]:
        """Everything again."""
        with self._at_work():
            pictures = [picture_record(item, self.shelf, self._hints) for item in self.shelf.items]
            return {"revision": self.shelf.revision, "pictures": pictures, **self._told()}

    def changes(self, since: int) -> dict[str, Any]:
        """What changed after a revision, whoever changed it."""
        with self._at_work():
            items = self.shelf.since(since)
            answer = {
                "revision": self.shelf.revision,
                "changed": [self._record(item) for item in items if not item.gone],
                "gone": [item.id for item in items if item.gone],
                "added": any(item.added > since for item in items),
            }
            return answer | (self._told() if self.shelf.revision > since else self._history.as_record())

    # ------------------------------------------------------------------------ edits

    def edit(self, edit: Edit) -> dict[str, Any]:
        """Make an edit. Raises InputError where it cannot be made of any picture."""
        with self._at_work():
            before = self.shelf.revision
            if edit.action == "out":
                written = move_out(self.shelf, edit.ids, out=edit.out)
            else:
                written = write_captions(self.shelf, edit.versions, by_text(rewriter(edit)))
            label = edit.label(len(written.captions) + len(written.pictures))
            self._note(written, label, edit.ids, out=edit.out if edit.action == "out" else None)
            return self._answer(before, written)

    def undo(self) -> dict[str, Any]:
        """Take the last edit back that was not taken back. Raises InputError where there is none."""
        with self._at_work():
            done = self._history.last()
            if done is None:
                raise InputError("there is nothing to take back")
            before = self.shelf.revision
            foreign, errors = self._history.take_back(done)
            conflicts = [item.id for item in self.shelf.items if item.picture.caption_path in foreign]
            written = Written(done.run, conflicts=conflicts, errors=[(done.ids[0], text) for text in errors])
            return self._answer(before, written)

    def redo(self) -> dict[str, Any]:
        """Make the edit again that was taken back last. Raises InputError where there is none."""
        with self._at_work():
            if self._history.next() is None:
                raise InputError("there is nothing to do again")
            before, undone = self.shelf.revision, self._history.take_next()
            done = undone.done
            if done.out is not None:
                written = move_out(self.shelf, done.ids, out=done.out)
            else:
                versions = {
                    item.id: undone.now[path]
                    for item in map(self.shelf.items.__getitem__, done.ids)
                    if not item.gone and (path := self.shelf.caption_of(item)) in undone.held
                }
                written = write_captions(self.shelf, versions, lambda path, _: undone.held[path])
            self._note(written, done.label, done.ids, out=done.out, again=True)
            return self._answer(before, written)

    def _note(
        self, written: Written, label: str, ids: tuple[int, ...], *, out: bool | None, again: bool = False
    ) -> None:
        if written.run is None:
            return
        moved = [self.shelf.items[number].picture.path for number in ids] if out is not None else []
        folders = folders_of(written, moved)
        self._history.add(Done(written.run, label, ids, written.captions, folders, out), again=again)

    # ------------------------------------------------------------------------ answers

    def _answer(self, before: int, written: Written) -> dict[str, Any]:
        self.shelf.refresh()
        items = self.shelf.items
        return {
            "revision": self.shelf.revision,
            "run": written.run,
            "changed": [self._record(item) for item in self.shelf.since(before) if not item.gone],
            "conflicts": [self._record(items[number]) for number in dict.fromkeys(written.conflicts)],
            "errors": [{"id": number, "text": self.shelf.plain(text)} for number, text in written.errors],
            **self._told(),
        }

    def _told(self) -> dict[str, Any]:
        return {**findings_record(self._judge.report(), self.shelf), **self._history.as_record()}

    def _record(self, item: Item) -> dict[str, Any]:
        return picture_record(item, self.shelf, self._hints)
