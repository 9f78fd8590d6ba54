"""What an edit makes of a caption's text: one step of lora-clean's on the lines that have something to change.

All other lines stay as they are, letter by letter. A line that is a sentence is not cut at its commas: pieces between
them go or change by a phrase, so "1,000 people" stays what it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from lorapipe_dataset.check.edit.asked import Edit
from lorapipe_dataset.check.pictures.dataset import is_text
from lorapipe_dataset.clean.captions.cleaner import Cleaner
from lorapipe_dataset.clean.captions.rules import Rules
from lorapipe_dataset.clean.captions.tags import MARK, join_caption, key_maker, split_caption
from lorapipe_engine.errors import InputError
from lorapipe_engine.pictures.captions import caption_lines
from lorapipe_engine.pictures.joining import join_captions

Rewrite = Callable[[str], str]
SEPARATOR = ", "
_COMMA = (",",)
_ENDS = (".", "!", "?", "。", "！", "？")


def rewriter(edit: Edit) -> Rewrite:
    """What an edit makes of each caption, which is "" where there is none. The function raises InputError."""
    if edit.action == "caption":
        return lambda _text: _tidied(edit.text)
    change = _BY_ACTION[edit.action](edit)

    def rewrite(text: str) -> str:
        lines = caption_lines(text) or [""]
        new = [change(line) for line in (lines[:1] if edit.action == "order" else lines)]
        new += lines[len(new) :]
        return text if new == lines else "\n".join(line for line in new if line)

    return rewrite


def _tidied(text: str) -> str:
    """A caption that was written by hand: its lines trimmed, nothing invisible in them, and else as they were given."""
    return _cleaner(style="text").clean(text)


def _cleaner(**rules: object) -> Cleaner:
    return Cleaner(Rules(dedupe=False, **rules))  # type: ignore[arg-type]


_key = key_maker()


def _is_sentence(line: str) -> bool:
    return MARK not in line and is_text(line)


def _pieces(line: str) -> list[str]:
    return [piece for piece in split_caption(line, _COMMA) if piece != MARK]


# -------------------------------------------------------------------------------- add, remove, rename


def _adding(edit: Edit) -> Rewrite:
    tags, in_front = list(edit.tags), edit.where == "front"

    def add(line: str) -> str:
        if {_key(piece) for piece in _pieces(line)}.issuperset(map(_key, tags)):
            return line
        how, front = ("prepend", len(tags)) if in_front else ("append", 0)
        new = join_captions(line, tags, how, SEPARATOR, _key, front=front)  # type: ignore[arg-type]
        start = f"{line}{SEPARATOR}"
        if line.endswith(_ENDS) and _is_sentence(line) and new.startswith(start):
            return f"{line} {new.removeprefix(start)}"  # no comma behind a full stop
        return new

    return add


def _removing(edit: Edit) -> Rewrite:
    keys = set(map(_key, edit.tags))
    cleaner = _cleaner(replace=dict.fromkeys(keys, ()))

    def remove(line: str) -> str:
        there = [piece for piece in _pieces(line) if _key(piece) in keys]
        if not there:
            return line
        return _without(line, there) if _is_sentence(line) else cleaner.clean(line)

    return remove


def _renaming(edit: Edit) -> Rewrite:
    old, new = _key(edit.old), edit.new
    renamed = _cleaner(replace={old: (new,)})
    removed = _cleaner(replace={old: ()})

    def rename(line: str) -> str:
        pieces = _pieces(line)
        there = [piece for piece in pieces if _key(piece) == old and piece != new]
        if not there:
            return line
        # A caption that has the new tag already needs it no second time.
        has_both = old != _key(new) and any(_key(piece) == _key(new) for piece in pieces)
        if _is_sentence(line):
            return _without(line, there) if has_both else _replaced(line, there, new)
        return (removed if has_both else renamed).clean(line)

    return rename


def _without(line: str, pieces: Iterable[str]) -> str:
    """A sentence without pieces that stand between commas."""
    phrases = []
    for piece in map(re.escape, dict.fromkeys(pieces)):
        phrases += [
            (rf"^\s*{piece}\s*(?:,\s*|$)", ""),
            (rf"\s*,\s*{piece}\s*(?=,|$)", ""),
        ]
    return _cleaner(style="text", phrases=phrases).clean(line)


def _replaced(line: str, pieces: Iterable[str], new: str) -> str:
    """A sentence with ``new`` in the place of pieces that stand between commas."""
    template = new.replace("\\", r"\\")
    phrases = [
        (rf"(^|,)(\s*){re.escape(piece)}(?=\s*(?:,|$))", rf"\g<1>\g<2>{template}")
        for piece in dict.fromkeys(pieces)
    ]
    return _cleaner(style="text", phrases=phrases).clean(line)


# -------------------------------------------------------------------------------- order


def _moving(edit: Edit) -> Rewrite:
    key, in_front = _key(edit.tag), edit.where == "front"
    cleaner = _cleaner(**{"first" if in_front else "last": (edit.tag,)})

    def move(line: str) -> str:
        pieces = _pieces(line)
        there = [piece for piece in pieces if _key(piece) == key]
        end = pieces[: len(there)] if in_front else pieces[len(pieces) - len(there) :]
        if not there or (end == there and MARK not in line):
            return line
        if _is_sentence(line):
            rest = _without(line, there)
            return SEPARATOR.join([*there, rest] if in_front else [rest, *there])
        moved = cleaner.clean(line)
        return line if split_caption(moved, _COMMA) == split_caption(line, _COMMA) else moved

    return move


def _ordering(edit: Edit) -> Rewrite:
    cleaner = _cleaner()

    def order(line: str) -> str:
        before = split_caption(line, _COMMA)
        if Counter(before) != Counter(edit.tags):
            raise InputError("order: these are not the tags that the caption has; nothing was changed")
        return line if before == list(edit.tags) else _joined(edit.tags, cleaner)

    return order


def _joined(tags: Sequence[str], cleaner: Cleaner) -> str:
    text = join_caption(tags, SEPARATOR)
    return text if is_text(text) else cleaner.clean(text)


_BY_ACTION: dict[str, Callable[[Edit], Rewrite]] = {
    "add": _adding,
    "remove": _removing,
    "rename": _renaming,
    "order": _ordering,
    "move": _moving,
}
