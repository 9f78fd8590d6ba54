"""Text for terminals: names out of files, counts, lists and columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from lorapipe_engine.command.text import printable

LINE = 110
_LONG_NAME = 40


def counted(number: int, noun: str) -> str:
    """ "1 module", "2,000 modules"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def listed(entries: Sequence[str], most: int | None, total: int | None = None) -> Iterator[str]:
    """The first entries, and how many more there are of ``total``."""
    shown = entries if most is None else entries[:most]
    yield from map(printable, shown)
    left = (len(entries) if total is None else total) - len(shown)
    if left > 0:
        yield f"and {left:,} more"


def wrapped(label: str, text: str, width: int) -> list[str]:
    """A text in lines behind a label of ``width`` columns. Long names stay whole, with what stands beside them."""
    lines = [text]
    if max(map(len, text.split()), default=0) <= _LONG_NAME:
        lines = textwrap.wrap(text, LINE - width - 2, break_long_words=False, break_on_hyphens=False) or [""]
    return [f"  {label if number == 0 else '':<{width}}{line}" for number, line in enumerate(lines)]


def size_in_words(size: int) -> str:
    """Bytes in a unit that fits: "75.6 MB"."""
    number, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{size} bytes" if unit == "bytes" else f"{number:.3g} {unit}"


def percent(share: float) -> str:
    """A share of 0 to 1 with three digits; what is above nothing never looks like it."""
    return f"{share * 100:.3g} %" if share else "0 %"
