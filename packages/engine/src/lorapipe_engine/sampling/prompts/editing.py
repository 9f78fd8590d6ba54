"""Syntax of prompts that changes from step to step, found in order to refuse it by name.

A1111 reads ``[a:b:0.5]``, ``[a:5]`` and ``[a::5]`` as prompt editing, ``[a|b]`` as alternation and ``a AND b`` as a sum
of two prompts. Read as weights they would draw another picture without a word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from lorapipe_engine.errors import ConfigError

_TOKEN = re.compile(r"\\.|[()\[\]:|]|[^\\()\[\]:|]+|\\", re.DOTALL)
_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*")
_AND = re.compile(r"\bAND\b")


@dataclass
class _Bracket:
    """An open bracket: its mark, where it begins, where the colons and bars right inside it are."""

    mark: str
    start: int
    colons: list[int] = field(default_factory=list)
    bars: list[int] = field(default_factory=list)


def refuse_editing(prompt: str, where: str, *, is_negative: bool = False) -> None:
    """Raise ConfigError for editing, alternation and AND; in a negative prompt AND is a word, as in A1111."""
    opened: list[_Bracket] = []
    for token in _TOKEN.finditer(prompt):
        mark, place = token[0], token.start()
        if mark in ("(", "["):
            opened.append(_Bracket(mark, place))
        elif mark in (":", "|") and opened:
            (opened[-1].colons if mark == ":" else opened[-1].bars).append(place)
        elif mark in (")", "]"):
            closed = _close(opened, "(" if mark == ")" else "[")
            if closed is not None and mark == "]":
                _check(prompt, place, closed, where)
    match = None if is_negative else _AND.search(prompt)
    if match:
        raise ConfigError(
            f"{where}, column {match.start() + 1}: AND, the sum of two prompts, is not supported; "
            "write 'and' for the word"
        )


def _close(opened: list[_Bracket], mark: str) -> _Bracket | None:
    """The newest bracket of a mark, taken off with those that were opened inside it and not closed."""
    if not any(row.mark == mark for row in opened):
        return None
    row = opened.pop()
    while row.mark != mark:
        row = opened.pop()
    return row


def _check(prompt: str, end: int, row: _Bracket, where: str) -> None:
    text = prompt[row.start : end + 1]
    place = f"{where}, column {row.start + 1}"
    if row.bars:
        raise ConfigError(
            f"{place}: {text} alternates from step to step, which is not supported; {{a|b}} draws one"
        )
    if 1 <= len(row.colons) <= 2 and _NUMBER.fullmatch(prompt, row.colons[-1] + 1, end):
        raise ConfigError(
            f"{place}: {text} is prompt editing, which is not supported; a weight is written with round "
            "brackets, as (a:1.2)"
        )
