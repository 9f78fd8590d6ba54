"""Weights of prompts taken out of a caption: ``(tag:1.2)``, ``((tag, tag))``, ``[tag]``.

A bracket with a number at its end is a weight wherever it stands. One without is a weight where it holds whole tags:
``name (series)`` keeps its brackets. Brackets of faces (``:(``, ``(o)_(o)``) and behind a backslash are letters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import compress
from operator import not_

from lorapipe_dataset.clean.captions.tags import MARK
from lorapipe_dataset.texts.vocabulary import is_word

_PLAIN = "\0"  # in the place of a bracket that is a letter
_BRACKETS = re.compile(r"[()\[\]]")
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*")
_OPENED = {")": "(", "]": "["}
# A tag in brackets that all open in front of it or close behind it; a face has others, or signs alone in them.
_WRAPPED = re.compile(rf"(?:[(\[]\s*)*([^()\[\]\s][^()\[\]]*)(?:[)\]]\s*(?::{_NUMBER.pattern})?)*")


def weight_taker(
    separators: Sequence[str], own: Collection[str], *, numbered_only: bool = False
) -> Callable[[str], str]:
    """A function from a line to the line without weights. ``separators``: the signs between tags; ``own``: tags that
    stay as they are; ``numbered_only``: only brackets with a number, as in sentences.
    """
    signs = "".join(map(re.escape, separators))
    cut = re.compile(rf"[{signs}]|{re.escape(MARK)}")
    # Signs with one bracket behind them or in front, by themselves: ":(", ">:(", ";)", "(:".
    eyes = rf"[^\w\s()\[\]{{}}|\\{signs}]{{1,3}}"
    face = re.compile(
        rf"(?<![^\s([{signs}]){eyes}[()\[\]](?=[\s)\]{signs}]|$|:{_NUMBER.pattern}[)\]])"
        rf"|(?<![^\s{signs}])[()\[\]]{eyes}(?=[\s{signs}]|$)"
    )

    def take(line: str) -> str:
        if "(" not in line and "[" not in line:
            return line
        masked = face.sub(_mask, _ESCAPED.sub(_PLAIN * 2, line))
        for start, end in _pieces(masked, cut):
            piece = masked[start:end]
            if _BRACKETS.search(piece) and _is_fixed(line[start:end].strip(), piece.strip(), own):
                masked = masked[:start] + _BRACKETS.sub(_PLAIN, piece) + masked[end:]
        return _without(line, masked, cut, numbered_only)

    return take


def _mask(match: re.Match[str]) -> str:
    return _BRACKETS.sub(_PLAIN, match[0])


def _is_fixed(tag: str, masked: str, own: Collection[str]) -> bool:
    """Whether the brackets of a tag are all letters of it."""
    if tag in own or is_word(tag):
        return tag in own
    wrapped = _WRAPPED.fullmatch(masked)
    return wrapped is None or not any(map(str.isalnum, wrapped[1]))


def _pieces(line: str, cut: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """The places of the tags in a line."""
    start = 0
    for sign in cut.finditer(line):
        yield start, sign.start()
        start = sign.end()
    yield start, len(line)


def _without(line: str, masked: str, cut: re.Pattern[str], numbered_only: bool) -> str:
    out = bytearray(len(line))  # 1: the letter goes
    edges = {at for place in _pieces(masked, cut) for at in place}
    for start, end in _pairs(masked):  # the outer before the inner ones
        if colon := _colon_of(masked, start, end):
            out[colon:end] = b"\1" * (end - colon)
        elif (
            numbered_only
            or not _is_group(masked, cut, start, end)
            or not _is_whole(line, out, edges, start, end)
        ):
            continue
        out[start] = out[end] = 1
    return "".join(compress(line, map(not_, out))) if any(out) else line


def _pairs(masked: str) -> list[tuple[int, int]]:
    """The brackets that have their partner, by their places."""
    opened: dict[str, list[int]] = {"(": [], "[": []}
    pairs: list[tuple[int, int]] = []
    for match in _BRACKETS.finditer(masked):
        if match[0] in opened:
            opened[match[0]].append(match.start())
        elif opened[_OPENED[match[0]]]:
            pairs.append((opened[_OPENED[match[0]]].pop(), match.start()))
    return sorted(pairs)


def _colon_of(masked: str, start: int, end: int) -> int | None:
    """The place of the colon before a weight's number; None where brackets have none. ``(12:30)`` is a time."""
    colon = masked.rfind(":", start, end)
    inside = masked[start + 1 : max(colon, 0)].strip()
    if not inside or not _NUMBER.fullmatch(masked, colon + 1, end):
        return None
    return None if inside.isdigit() and "." not in masked[colon:end] else colon


def _is_group(masked: str, cut: re.Pattern[str], start: int, end: int) -> bool:
    """Whether there are words between brackets, or several tags: ``(9)`` is a face."""
    return is_word(masked[start + 1 : end]) or cut.search(masked, start + 1, end) is not None


def _is_whole(line: str, out: bytearray, edges: Collection[int], start: int, end: int) -> bool:
    """Whether there is nothing between brackets and the next separators but what goes, too."""
    while start not in edges and (out[start - 1] or line[start - 1].isspace()):
        start -= 1
    end += 1
    while end not in edges and (out[end] or line[end].isspace()):
        end += 1
    return start in edges and end in edges
