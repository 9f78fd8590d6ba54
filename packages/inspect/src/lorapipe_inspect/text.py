"""Text for terminals: names out of files, counts, lists and columns."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from lorapipe_engine.command.text import counted, printable

__all__ = [
    "LINE",
    "counted",
    "listed",
    "percent",
    "short_names",
    "size_in_words",
    "without_suffix",
    "wrapped",
]

LINE = 110
_LONG_NAME = 40


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


def without_suffix(text: str) -> str:
    """The name of a network's file, or of a run's metrics, without its suffix."""
    return re.sub(r"\.(safetensors|ckpt|pt|metrics\.jsonl)$", "", text)


def short_names(paths: Sequence[str]) -> list[str]:
    """Names of files without folder and suffix; with as many folders as tell equal ones apart."""
    parts = [[part for part in re.split(r"[\\/]+", without_suffix(path)) if part] or ["?"] for path in paths]
    names = [one[-1] for one in parts]
    for depth in range(2, max(map(len, parts), default=1) + 1):
        twice = {name for name in names if names.count(name) > 1}
        if not twice:
            break
        names = [
            "/".join(one[-depth:]) if name in twice else name for one, name in zip(parts, names, strict=True)
        ]
    return names
