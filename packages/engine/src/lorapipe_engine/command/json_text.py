"""JSON that strangers wrote: read with bounds, so that what is read can be written again."""

from __future__ import annotations

import json
import math
import re
from typing import Any

MOST_DEPTH = 100  # lists and objects inside each other
_WIDE = re.compile(r"\d(?:[eE]\+?\d{3}|\d{299})")  # text of numbers that may be larger than any float


class NoJson(ValueError):
    """A text that is no JSON, or beyond a bound. The message is the reason, without a place."""


class BeyondJson(NoJson):
    """JSON that is too deep, or has a number that cannot be kept."""


def parse_json(text: str) -> Any:
    """The value that a JSON text stands for. Raises NoJson (a ValueError).

    Refused besides what is no JSON: nesting deeper than ``MOST_DEPTH``, whole numbers of more than 4,300 digits
    (Python's own bound), and numbers that are none (NaN, Infinity, 1e999), which no JSON could say again.
    """
    if text.count("[") + text.count("{") > MOST_DEPTH:
        _check_depth(text)
    try:
        return (_WARY if _WIDE.search(text) else _QUICK).decode(text)
    except json.JSONDecodeError as error:
        raise NoJson(f"{error.msg}, line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise BeyondJson("nested too deeply") from None
    except NoJson:
        raise
    except ValueError:
        raise BeyondJson("a number of too many digits") from None


def twice_named(text: str) -> str | None:
    """A name that an object of a JSON text has twice, of which one would be lost; None where there is none."""
    twice: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> None:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            twice.append(next(name for name in names if names.count(name) > 1))

    json.loads(text, object_pairs_hook=look)
    return twice[0] if twice else None


def _check_depth(text: str) -> None:
    depth, quoted = 0, False
    for match in _MARKS.finditer(text):
        mark = match.group()
        if mark == '"':
            quoted = not quoted
        elif not quoted and len(mark) == 1:
            depth += 1 if mark in "[{" else -1
            if depth > MOST_DEPTH:
                raise BeyondJson("nested too deeply")


# Quotes, brackets, and escaped letters as a whole, so that an escaped quote is none.
_MARKS = re.compile(r'\\.|["\[\]{}]', re.DOTALL)


def _constant(name: str) -> Any:
    raise NoJson(f"{name} is no number")


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise BeyondJson("a number that is too large")
    return number


# Made once: thousands of records are read in a row. The quick one leaves numbers to json's own C code.
_QUICK = json.JSONDecoder(parse_constant=_constant)
_WARY = json.JSONDecoder(parse_constant=_constant, parse_float=_float)
