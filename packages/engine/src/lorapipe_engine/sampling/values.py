"""Values of an axis as AUTOMATIC1111's X/Y/Z plot writes them: ``1-5 (+2)``, ``0.7-1.5 [5]``, ``cat, "a, b"``.

Values are separated by commas and line ends; double quotes protect both, ``""`` is one quote inside them. A number may
be a range: ``a-b`` by ones, ``a-b (+s)`` and ``a-b (-s)`` by steps, ``a-b [n]`` as n values at equal distances. What
A1111 answers with nothing, with values beyond the end of the range, or with an exception is refused here with the
column. The same values come out otherwise, but that a number with a fraction is rounded to 8 places.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from lorapipe_engine.errors import ConfigError

MOST_VALUES = 10_000  # of one axis
MOST_DIGITS = 20
PLACES = 8  # of a number with a fraction, as A1111 rounds labels

_WHOLE = re.compile(r"[+-]?\d+")
_DECIMAL = re.compile(r"[+-]?\d+(?:\.\d*)?")
_LONE = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE]\+?\d{1,2})?")
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Item:
    """One value of a list, with the column of its first letter, counted from 1."""

    text: str
    column: int


@dataclass(frozen=True)
class _Range:
    """``start`` to ``end``; ``step`` and ``count`` as they were given, None where they were not."""

    start: Fraction
    end: Fraction
    step: Fraction | None
    count: int | None


class _Malformed(Exception):
    """What is wrong, and how far behind the item's first letter."""

    def __init__(self, what: str, place: int) -> None:
        super().__init__(what)
        self.place = place


def read_texts(text: str, where: str, first_column: int = 1) -> tuple[Item, ...]:
    """The values of an axis of texts. An empty one between commas is a value; an empty text has none.

    ``where`` and ``first_column`` name the option and the place of ``text`` in it for errors. Raises ConfigError for a
    quotation that has no end.
    """
    return tuple(_limited(split_list(text, where, first_column), where))


def read_whole_numbers(text: str, where: str, first_column: int = 1) -> tuple[int, ...]:
    """The values of an axis of whole numbers. Raises ConfigError with the column of what is malformed."""
    numbers = _numbers(text, where, first_column, _whole_values)
    return tuple(int(number) for number in numbers)


def read_decimals(text: str, where: str, first_column: int = 1) -> tuple[float, ...]:
    """The values of an axis of numbers with a fraction, rounded to 8 places.

    Raises ConfigError with the column of what is malformed.
    """
    return tuple(
        round(float(number), PLACES) for number in _numbers(text, where, first_column, _decimal_values)
    )


def value_label(value: float | str) -> str:
    """A value as A1111 labels it: a number with a fraction rounded to 8 places, and as Python writes it."""
    return str(round(value, PLACES)) if isinstance(value, float) else str(value)


# -------------------------------------------------------------------------------- lists


def split_list(text: str, where: str, first_column: int = 1) -> Iterator[Item]:
    """The items of a list, trimmed. Empty lines have none."""
    place = 0
    begins_line = True
    while place <= len(text):
        first, value, end = _next_item(text, place, where, first_column)
        ends_line = end >= len(text) or text[end] in "\r\n"
        if not (begins_line and ends_line and not text[place:end].strip()):
            yield Item(value.strip(), first_column + first)
        begins_line, place = ends_line, end + 1


def _next_item(text: str, start: int, where: str, first_column: int) -> tuple[int, str, int]:
    """The item that begins at ``start``: places of its first letter and of the mark that ends it, and its value."""
    first = start + len(text[start:]) - len(text[start:].lstrip(" "))
    if text[first : first + 1] != '"':
        end = _end_of(text, start)
        return min(first, end), text[start:end], end
    letters: list[str] = []
    place = first + 1
    while True:
        close = text.find('"', place)
        if close < 0:
            raise ConfigError(f"{where}, column {first_column + first}: this quotation has no end")
        letters.append(text[place:close])
        place = close + 1
        if text[place : place + 1] != '"':
            break
        letters.append('"')
        place += 1
    end = _end_of(text, place)
    return first, "".join(letters) + text[place:end], end


def _end_of(text: str, start: int) -> int:
    return next((place for place in range(start, len(text)) if text[place] in ",\r\n"), len(text))


def _limited(items: Iterator[Item], where: str) -> Iterator[Item]:
    for number, item in enumerate(items):
        if number == MOST_VALUES:
            raise ConfigError(f"{where}: more than {MOST_VALUES:,} values")
        yield item


# -------------------------------------------------------------------------------- numbers


def _numbers(
    text: str, where: str, first_column: int, values_of: Callable[[str], list[Fraction]]
) -> list[Fraction]:
    numbers: list[Fraction] = []
    for item in split_list(text, where, first_column):
        if not item.text:
            continue
        try:
            numbers += values_of(item.text)
        except _Malformed as error:
            raise ConfigError(f"{where}, column {item.column + error.place}: {error}") from None
        if len(numbers) > MOST_VALUES:
            raise ConfigError(f"{where}, column {item.column}: more than {MOST_VALUES:,} values")
    return numbers


def _whole_values(item: str) -> list[Fraction]:
    span = _read_range(item, _WHOLE, "a whole number")
    if isinstance(span, Fraction):
        return [span]
    if span.count is not None:
        # A1111 cuts the fractions off.
        return [Fraction(math.trunc(value)) for value in _spread(span)]
    step = Fraction(1) if span.step is None else span.step
    # A1111 stops before the end plus one whichever way it goes: 10-1 (-3) is 10, 7 and 4.
    stop = span.end if step > 0 else span.end + 2
    _check_direction(span, step, stop)
    return [span.start + step * place for place in range(_steps(span, step, stop) + 1)]


def _decimal_values(item: str) -> list[Fraction]:
    if _LONE.fullmatch(item) and len(item) <= MOST_DIGITS:
        return [Fraction(item)]
    span = _read_range(item, _DECIMAL, "a number")
    if isinstance(span, Fraction):
        return [span]
    if span.count is not None:
        return _spread(span)
    step = Fraction(1) if span.step is None else span.step
    _check_direction(span, step, span.end)
    steps = _steps(span, step, span.end)
    last = span.start + step * steps
    if last != span.end:
        beyond = value_label(float(last + step))
        raise _Malformed(
            f"'{item}' does not end at {value_label(float(span.end))} but goes on to {beyond}; "
            f"give {_shown(span.start)}-{_shown(last)} (+{_shown(step)}) or a count, as {_shown(span.start)}-"
            f"{_shown(span.end)} [{steps + 2}]",
            0,
        )
    return [span.start + step * place for place in range(steps + 1)]


def _shown(number: Fraction) -> str:
    return f"{float(number):g}"


def _spread(span: _Range) -> list[Fraction]:
    """``count`` values at equal distances, both ends among them; one alone is the start."""
    count = span.count or 0
    if count == 0:
        raise _Malformed("[0] asks for no value; give a count of at least 1", 0)
    gap = (span.end - span.start) / (count - 1) if count > 1 else Fraction(0)
    return [span.start + gap * place for place in range(count)]


def _check_direction(span: _Range, step: Fraction, stop: Fraction) -> None:
    """Raise where no step is taken: A1111 has no values then. ``stop`` is the last value there can be."""
    start, end = _shown(span.start), _shown(span.end)
    if step == 0:
        raise _Malformed("a step of 0 never ends", 0)
    if (stop - span.start) * step < 0:
        raise _Malformed(
            f"{start}-{end} has no value by steps of {_shown(step)}; give a count, as {start}-{end} [5]", 0
        )


def _steps(span: _Range, step: Fraction, stop: Fraction) -> int:
    steps = int((stop - span.start) / step)
    if steps >= MOST_VALUES:
        raise _Malformed(f"more than {MOST_VALUES:,} values", 0)
    return steps


def _read_range(item: str, number: re.Pattern[str], what: str) -> Fraction | _Range:
    """A number by itself, or a range. ``number`` is how its numbers look, ``what`` errors call them."""
    start, place = _take(item, 0, number, what)
    if place == len(item):
        return start
    if item[place] != "-":
        raise _Malformed(f"'{item}' is not {what}, nor a range as 1-5, 1-5 (+2) or 1-5 [3]", place)
    end, place = _take(item, place + 1, number, what)
    if place == len(item):
        return _Range(start, end, None, None)
    if item[place] == "(":
        if item[place + 1 : place + 2] not in ("+", "-"):
            raise _Malformed("a step has its sign, as (+2) or (-2)", place + 1)
        step, after = _take(item, place + 1, number, what, spaces=False)
        _expect(item, after, ")")
        return _Range(start, end, step, None)
    if item[place] == "[":
        digits = re.compile(r"\d+").match(item, place + 1)
        if digits is None:
            raise _Malformed("a count is a whole number right behind the bracket, as [5]", place + 1)
        _expect(item, _skip(item, digits.end()), "]")
        if len(digits[0]) > len(str(MOST_VALUES)) or int(digits[0]) > MOST_VALUES:
            raise _Malformed(f"more than {MOST_VALUES:,} values", place)
        return _Range(start, end, None, int(digits[0]))
    raise _Malformed(f"'{item[place:]}' behind a range; a step is (+2) or (-2), a count is [5]", place)


def _take(
    item: str, place: int, number: re.Pattern[str], what: str, *, spaces: bool = True
) -> tuple[Fraction, int]:
    """The number at a place, and the place behind it and its spaces."""
    place = _skip(item, place) if spaces else place
    match = number.match(item, place)
    if match is None or not match[0].isascii():
        raise _Malformed(f"'{item}': expected {what} here", min(place, len(item)))
    if len(match[0]) > MOST_DIGITS:
        raise _Malformed(f"a number of more than {MOST_DIGITS} digits", place)
    after = match.end()
    if item[after : after + 1] in ("e", "E", ".", "_") or item[after : after + 1].isalpha():
        raise _Malformed(f"'{item}' is not {what}; write it in plain digits, as {_example(what)}", after)
    return Fraction(match[0]), _skip(item, after)


def _example(what: str) -> str:
    return "7" if what == "a whole number" else "0.1"


def _expect(item: str, place: int, mark: str) -> None:
    place = _skip(item, place)
    if item[place : place + 1] != mark:
        raise _Malformed(f"expected '{mark}' here", place)
    rest = _skip(item, place + 1)
    if rest < len(item):
        raise _Malformed(f"'{item[rest:]}' behind a range", rest)


def _skip(item: str, place: int) -> int:
    match = _SPACE.match(item, place)
    return match.end() if match else place
