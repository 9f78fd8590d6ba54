"""Draws rows of train.py as bars: milliseconds of a step, a group for each workload.

    python tools/bench/train_chart.py ROWS.json OUT.svg

ROWS.json: {"A": {"sd-scripts": 335, "captured": 32.5}, "B": {"sd-scripts": 550, "captured": 20.8}}
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

WIDE, LEFT, RIGHT, TOP = 860, 150, 60, 44
BAR, GAP = 18, 14
COLOURS = ("#b0b7c3", "#7aa6d8", "#1f6fc4")
TICK = 200  # ms


def main(words: list[str]) -> int:
    if len(words) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    rows: dict[str, dict[str, float]] = json.loads(Path(words[0]).read_text())
    Path(words[1]).write_text("\n".join(svg(rows)) + "\n")
    return 0


def svg(rows: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """The lines of the picture."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    most = max(value for row in rows.values() for value in row.values())
    high = TOP + sum(BAR * len(row) + GAP for row in rows.values()) + 26
    scale = (WIDE - LEFT - RIGHT) / most
    size = f'viewBox="0 0 {WIDE} {high}" font-family="sans-serif" font-size="13"'
    yield f'<svg xmlns="http://www.w3.org/2000/svg" {size}>'
    yield f'<rect width="{WIDE}" height="{high}" fill="#ffffff"/>'
    for index, name in enumerate(names):
        x = LEFT + index * 230
        yield f'<rect x="{x}" y="14" width="14" height="14" fill="{COLOURS[index]}"/>'
        yield f'<text x="{x + 20}" y="26">{escape(name)}</text>'
    for tick in range(0, int(most) + 1, TICK):
        x = LEFT + tick * scale
        yield f'<path d="M{x:.1f} {TOP - 6}V{high - 24}" stroke="#e4e4e4"/>'
        yield f'<text x="{x:.1f}" y="{high - 8}" text-anchor="middle" fill="#666666">{tick} ms</text>'
    y = TOP
    for title, row in rows.items():
        middle = y + BAR * len(row) / 2 + 4
        yield f'<text x="{LEFT - 10}" y="{middle:.1f}" text-anchor="end">{escape(title)}</text>'
        for name, value in row.items():
            colour, long = COLOURS[names.index(name)], value * scale
            yield f'<rect x="{LEFT}" y="{y}" width="{long:.1f}" height="{BAR - 3}" fill="{colour}"/>'
            yield f'<text x="{LEFT + long + 6:.1f}" y="{y + 12}" font-size="12">{value:g}</text>'
            y += BAR
        y += GAP
    yield "</svg>"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
