"""Small line charts: in the terminal with Braille dots or plain letters, as SVG, as PNG (with Pillow)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import BinaryIO

from lorapipe_engine.command.text import printable
from lorapipe_engine.errors import ConfigError, MissingExtra
from lorapipe_engine.files.writing.atomic import atomic_write

COLOURS = ("#1f6fb4", "#d9622b", "#2f8f4e", "#8a4fb0", "#b8860b", "#c2185b", "#00838f", "#6d4c41")
MARKS = "*o+x#%@="
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a Braille letter, by column and row
WIDTH, HEIGHT = 960, 480  # pixels of one chart
LEFT, RIGHT, TOP, BOTTOM = 90, 24, 48, 44  # margins, pixels
_LEGEND, _LEGEND_ROW = 4, 20  # names in a row of the legend, pixels of a row
_NAME = 26  # letters of a name in the legend
_MOST_ROWS = 6


@dataclass(frozen=True)
class Line:
    """A named curve: a value for each x = 0, 1, 2, ..., or for each of ``x``, which rise. All are finite."""

    name: str
    values: Sequence[float]
    x: Sequence[float] | None = None

    @property
    def end(self) -> float:
        """The last x."""
        return self.x[-1] if self.x else max(0, len(self.values) - 1)


@dataclass(frozen=True)
class Chart:
    """Lines under one title. ``from_zero``: the scale begins at 0, not just below the lowest value."""

    title: str
    lines: Sequence[Line]
    from_zero: bool = True


@dataclass(frozen=True)
class _Scale:
    """The range of both axes."""

    low: float
    high: float
    end: float

    @staticmethod
    def of(chart: Chart) -> _Scale:
        values = [value for line in chart.lines for value in line.values]
        lowest, highest = min(values, default=0.0), max(values, default=0.0)
        low = min(0.0, lowest)
        if not chart.from_zero and lowest > highest / 3:
            low = lowest - (highest - lowest) * 0.05
        high = highest if highest > low else low + 1.0
        return _Scale(low, high, max((line.end for line in chart.lines), default=0.0) or 1.0)

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


# -------------------------------------------------------------------------------------------- the terminal


def text_chart(
    lines: Sequence[Line], *, columns: int = 78, rows: int = 14, braille: bool = True, from_zero: bool = True
) -> str:
    """A chart of letters, with its scale at the left and the legend above; ``columns`` by about ``rows`` letters."""
    scale = _Scale.of(Chart("", lines, from_zero))
    labels = [f"{value:.3g}" for value in (scale.high, (scale.high + scale.low) / 2, scale.low)]
    margin = max(map(len, labels)) + 2
    width = max(10, columns - margin)
    canvas = [[" "] * width for _ in range(rows)]
    for index, line in enumerate(lines):
        draw = _braille if braille else _letters
        draw(canvas, line, scale, MARKS[index % len(MARKS)])
    marked = {0: labels[0], (rows - 1) // 2: labels[1], rows - 1: labels[2]}
    body = [
        f"{marked.get(row, ''):>{margin - 2}} |{''.join(letters).rstrip()}"
        for row, letters in enumerate(canvas)
    ]
    end = max((line.end if line.x else len(line.values) for line in lines), default=0)
    axis = f"{'':{margin - 1}}+{'-' * width}"
    ends = f"{'':{margin}}0{f'{end:g}' if end < 1e6 else f'{end:.0f}':>{width - 1}}"
    legend = [
        f"{printable(line.name)}{'' if braille else f' ({MARKS[i % len(MARKS)]})'}"
        for i, line in enumerate(lines)
    ]
    return "\n".join([*legend, *body, axis, ends])


def _spans(line: Line, end: float, columns: int) -> Iterator[tuple[int, float, float]]:
    """For each of ``columns`` columns that the line reaches the lowest and highest value, joined to its neighbour's.

    Between two points the line is straight.
    """
    xs = line.x or range(len(line.values))
    last = None
    for column in range(columns):
        first, stop = column * end / columns, (column + 1) * end / columns
        if not xs or first > xs[-1] or stop < xs[0]:
            continue
        begin = bisect_left(xs, first)
        inside = list(line.values[begin : bisect_left(xs, stop) + (1 if column == columns - 1 else 0)])
        inside = inside or [_between(line, xs, (first + stop) / 2)]
        low, high = min(inside), max(inside)
        if last is not None:
            low, high = min(low, last), max(high, last)
        last = inside[-1]
        yield column, low, high


def _between(line: Line, xs: Sequence[float], at: float) -> float:
    """The value of the line at ``at``; its first or last one outside."""
    place = bisect_left(xs, at)
    if place in (0, len(xs)):
        return line.values[min(place, len(xs) - 1)]
    share = (at - xs[place - 1]) / (xs[place] - xs[place - 1])
    return line.values[place - 1] + share * (line.values[place] - line.values[place - 1])


def _braille(canvas: list[list[str]], line: Line, scale: _Scale, _mark: str) -> None:
    width, height = len(canvas[0]) * 2, len(canvas) * 4
    for column, low, high in _spans(line, scale.end, width):
        for level in range(_level(low, scale, height), _level(high, scale, height) + 1):
            dot = height - 1 - level
            row, letter = canvas[dot // 4], column // 2
            before = ord(row[letter]) - 0x2800 if row[letter] != " " else 0
            row[letter] = chr(0x2800 + (before | _DOTS[column % 2][dot % 4]))


def _letters(canvas: list[list[str]], line: Line, scale: _Scale, mark: str) -> None:
    height = len(canvas)
    for column, low, high in _spans(line, scale.end, len(canvas[0])):
        for level in range(_level(low, scale, height), _level(high, scale, height) + 1):
            canvas[height - 1 - level][column] = mark


def _level(value: float, scale: _Scale, height: int) -> int:
    return min(height - 1, max(0, round(scale.share(value) * (height - 1))))


# ------------------------------------------------------------------------------------------------- pictures


def write_chart(path: Path, lines: Sequence[Line], title: str, *, force: bool = False) -> None:
    """Write a single chart as :func:`write_charts` does."""
    write_charts(path, [Chart(title, lines)], force=force)


def write_charts(path: Path, charts: Sequence[Chart], *, force: bool = False) -> None:
    """Write charts, one below the other, as .png or .svg. Raises ConfigError for another suffix, MissingExtra without
    Pillow, OutputError.
    """
    draw = {".png": _png, ".svg": _svg}.get(path.suffix.lower())
    if draw is None:
        raise ConfigError(f"{path}: a chart is written as .png or .svg")
    if draw is _png:
        _require_pillow()
    with atomic_write(path, force=force) as file:
        draw(file, charts)


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise MissingExtra("charts as .png need Pillow: pip install pillow; .svg needs nothing") from error


@dataclass(frozen=True)
class _Drawn:
    """A chart's marks in pixels from the upper left corner of its panel."""

    height: int
    top: int
    x: list[tuple[float, str]]
    y: list[tuple[float, str]]
    points: list[list[tuple[float, float]]]
    legend: list[tuple[int, int, str, str]]  # left, top, name, colour


def _laid_out(chart: Chart) -> _Drawn:
    scale = _Scale.of(chart)
    shown = min(len(chart.lines), _LEGEND * _MOST_ROWS)
    extra = max(0, math.ceil(shown / _LEGEND) - 1) * _LEGEND_ROW
    wide, high, top = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM, TOP + extra

    def place(x: float, y: float) -> tuple[float, float]:
        return LEFT + x / scale.end * wide, top + (1 - scale.share(y)) * high

    rise = _round_step((scale.high - scale.low) / 5)
    first = math.ceil(scale.low / rise - 1e-9)
    levels = [rise * number for number in range(first, int(scale.high / rise + 1e-9) + 1)]
    step = _round_step(scale.end / 8)
    along = [step * number for number in range(int(scale.end / step + 1e-9) + 1)]
    legend = [
        (
            LEFT + index % _LEGEND * 212,
            28 + index // _LEGEND * _LEGEND_ROW,
            _short(line.name, len(chart.lines)),
            COLOURS[index % len(COLOURS)],
        )
        for index, line in enumerate(chart.lines[:shown])
    ]
    return _Drawn(
        HEIGHT + extra,
        top,
        [(place(at, 0)[0], f"{at:g}") for at in along],
        [(place(0, at)[1], f"{at:.3g}") for at in levels],
        [[place(x, y) for x, y in _thinned(line, scale.end, wide)] for line in chart.lines],
        legend,
    )


def _thinned(line: Line, end: float, wide: int) -> list[tuple[float, float]]:
    """The line's points; of a line with more than there are pixels the lowest and highest of each column."""
    if len(line.values) <= wide:
        return list(zip(line.x or range(len(line.values)), line.values, strict=True))
    return [
        (column * end / (wide - 1), value)
        for column, low, high in _spans(line, end, wide)
        for value in ((low, high) if low != high else (low,))
    ]


def _short(name: str, lines: int) -> str:
    shown = printable(name)
    return shown if lines < 2 or len(shown) <= _NAME else f"{shown[: _NAME // 2]}…{shown[-_NAME // 2 + 1 :]}"


def _round_step(raw: float) -> float:
    """The nearest 1, 2 or 5 times a power of ten that is not below ``raw``."""
    power = 10.0 ** math.floor(math.log10(max(raw, 1e-30)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


def _svg(file: BinaryIO, charts: Sequence[Chart]) -> None:
    panels = [(chart, _laid_out(chart)) for chart in charts]
    height = sum(panel.height for _, panel in panels)
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="14">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    above = 0
    for chart, panel in panels:
        rows += [f'<g transform="translate(0 {above})">'] if above else []
        rows += _svg_panel(chart, panel)
        rows += ["</g>"] if above else []
        above += panel.height
    file.write(("\n".join([*rows, "</svg>"]) + "\n").encode("utf-8", "replace"))


def _svg_panel(chart: Chart, panel: _Drawn) -> list[str]:
    bottom = panel.height - BOTTOM
    rows = [f'<text x="{LEFT}" y="20">{escape(printable(chart.title))}</text>']
    for place, label in panel.y:
        rows.append(f'<path d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        rows.append(f'<text x="{LEFT - 8}" y="{place + 5:.1f}" text-anchor="end">{label}</text>')
    for place, label in panel.x:
        rows.append(f'<path d="M{place:.1f} {panel.top}V{bottom}" stroke="#eeeeee"/>')
        rows.append(f'<text x="{place:.1f}" y="{bottom + 20}" text-anchor="middle">{label}</text>')
    for index, points in enumerate(panel.points):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        rows.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    for left, top, name, colour in panel.legend:
        rows.append(f'<text x="{left}" y="{top + 12}" fill="{colour}">{escape(name)}</text>')
    return rows


def _png(file: BinaryIO, charts: Sequence[Chart]) -> None:
    from PIL import Image, ImageDraw, ImageFont

    panels = [(chart, _laid_out(chart)) for chart in charts]
    image = Image.new("RGB", (WIDTH, sum(panel.height for _, panel in panels)), "#ffffff")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    above = 0
    for chart, panel in panels:
        bottom = above + panel.height - BOTTOM
        draw.text((LEFT, above + 8), printable(chart.title), "#000000", font)
        for place, label in panel.y:
            draw.line((LEFT, above + place, WIDTH - RIGHT, above + place), "#dddddd")
            draw.text((LEFT - 8, above + place), label, "#000000", font, anchor="rm")
        for place, label in panel.x:
            draw.line((place, above + panel.top, place, bottom), "#eeeeee")
            draw.text((place, bottom + 8), label, "#000000", font, anchor="mt")
        for index, points in enumerate(panel.points):
            draw.line([(x, above + y) for x, y in points], COLOURS[index % len(COLOURS)], 2)
        for left, top, name, colour in panel.legend:
            draw.text((left, above + top), name, colour, font)
        above += panel.height
    image.save(file, "PNG")
