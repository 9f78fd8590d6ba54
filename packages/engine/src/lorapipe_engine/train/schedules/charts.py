"""Small line charts: in the terminal with Braille dots or plain letters, as SVG, as PNG (with Pillow)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import BinaryIO

from lorapipe_engine.errors import ConfigError, MissingExtra
from lorapipe_engine.files.atomic import atomic_write

COLOURS = ("#1f6fb4", "#d9622b", "#2f8f4e", "#8a4fb0")
MARKS = "*o+x"
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of a Braille letter, by column and row
WIDTH, HEIGHT = 960, 480  # pixels
LEFT, RIGHT, TOP, BOTTOM = 90, 24, 48, 44  # margins, pixels


@dataclass(frozen=True)
class Line:
    """A named curve: a value for each x = 0, 1, 2, ..."""

    name: str
    values: Sequence[float]


# -------------------------------------------------------------------------------------------- the terminal


def text_chart(lines: Sequence[Line], *, columns: int = 78, rows: int = 14, braille: bool = True) -> str:
    """A chart of letters, with its scale at the left and the legend above; ``columns`` by about ``rows`` letters."""
    top = _top(lines)
    labels = [f"{top:.3g}", f"{top / 2:.3g}", "0"]
    margin = max(map(len, labels)) + 2
    width = max(10, columns - margin)
    canvas = [[" "] * width for _ in range(rows)]
    for index, line in enumerate(lines):
        draw = _braille if braille else _letters
        draw(canvas, line.values, top, MARKS[index % len(MARKS)])
    scale = {0: labels[0], (rows - 1) // 2: labels[1], rows - 1: labels[2]}
    body = [
        f"{scale.get(row, ''):>{margin - 2}} |{''.join(letters).rstrip()}"
        for row, letters in enumerate(canvas)
    ]
    count = max(len(line.values) for line in lines)
    axis = f"{'':{margin - 1}}+{'-' * width}"
    ends = f"{'':{margin}}0{count!s:>{width - 1}}"
    legend = [
        f"{line.name}{'' if braille else f' ({MARKS[i % len(MARKS)]})'}" for i, line in enumerate(lines)
    ]
    return "\n".join([*legend, *body, axis, ends])


def _spans(values: Sequence[float], columns: int) -> Iterator[tuple[int, float, float]]:
    """For each of ``columns`` columns the lowest and highest value in it, joined to its neighbour's."""
    last = None
    for column in range(columns):
        start = column * len(values) // columns
        inside = values[start : max(start + 1, (column + 1) * len(values) // columns)]
        low, high = min(inside), max(inside)
        if last is not None:
            low, high = min(low, last), max(high, last)
        last = inside[-1]
        yield column, low, high


def _braille(canvas: list[list[str]], values: Sequence[float], top: float, _mark: str) -> None:
    width, height = len(canvas[0]) * 2, len(canvas) * 4
    for column, low, high in _spans(values, width):
        for level in range(_level(low, top, height), _level(high, top, height) + 1):
            dot = height - 1 - level
            row, letter = canvas[dot // 4], column // 2
            before = ord(row[letter]) - 0x2800 if row[letter] != " " else 0
            row[letter] = chr(0x2800 + (before | _DOTS[column % 2][dot % 4]))


def _letters(canvas: list[list[str]], values: Sequence[float], top: float, mark: str) -> None:
    height = len(canvas)
    for column, low, high in _spans(values, len(canvas[0])):
        for level in range(_level(low, top, height), _level(high, top, height) + 1):
            canvas[height - 1 - level][column] = mark


def _level(value: float, top: float, height: int) -> int:
    return min(height - 1, max(0, round(value / top * (height - 1))))


def _top(lines: Sequence[Line]) -> float:
    highest = max((max(line.values, default=0.0) for line in lines), default=0.0)
    return highest if highest > 0 else 1.0


# ------------------------------------------------------------------------------------------------- pictures


def write_chart(path: Path, lines: Sequence[Line], title: str, *, force: bool = False) -> None:
    """Write the chart as .png or .svg. Raises ConfigError for another suffix, MissingExtra without Pillow."""
    draw = {".png": _png, ".svg": _svg}.get(path.suffix.lower())
    if draw is None:
        raise ConfigError(f"{path}: a chart is written as .png or .svg")
    if draw is _png:
        _require_pillow()
    with atomic_write(path, force=force) as file:
        draw(file, lines, title)


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise MissingExtra("charts as .png need Pillow: pip install pillow; .svg needs nothing") from error


def _points(line: Line, top: float, count: int) -> list[tuple[float, float]]:
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    if len(line.values) <= wide:
        rows: list[tuple[float, float]] = list(enumerate(line.values))
    else:
        rows = [
            (column * (len(line.values) - 1) / (wide - 1), value)
            for column, low, high_value in _spans(line.values, wide)
            for value in ((low, high_value) if low != high_value else (low,))
        ]
    return [(LEFT + x / max(1, count - 1) * wide, TOP + (1 - y / top) * high) for x, y in rows]


def _ticks(top: float, count: int) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
    """Places and labels along x and along y, in pixels."""
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    step = _round_step(count / 8)
    x = [(LEFT + at / max(1, count - 1) * wide, f"{at:g}") for at in _multiples(step, count - 1)]
    rise = _round_step(top / 5)
    y = [(TOP + (1 - at / top) * high, f"{at:.3g}") for at in _multiples(rise, top)]
    return x, y


def _multiples(step: float, end: float) -> list[float]:
    return [step * index for index in range(int(end / step + 1e-9) + 1)]


def _round_step(raw: float) -> float:
    """The nearest 1, 2 or 5 times a power of ten that is not below ``raw``."""
    power = 10.0 ** math.floor(math.log10(max(raw, 1e-30)))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


def _svg(file: BinaryIO, lines: Sequence[Line], title: str) -> None:
    top, count = _top(lines), max(len(line.values) for line in lines)
    x, y = _ticks(top, count)
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="14">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20">{escape(title)}</text>',
    ]
    for place, label in y:
        rows.append(f'<path d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        rows.append(f'<text x="{LEFT - 8}" y="{place + 5:.1f}" text-anchor="end">{label}</text>')
    for place, label in x:
        rows.append(f'<path d="M{place:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#eeeeee"/>')
        rows.append(f'<text x="{place:.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{label}</text>')
    for index, line in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in _points(line, top, count))
        rows.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        rows.append(f'<text x="{LEFT + index * 220}" y="40" fill="{colour}">{escape(line.name)}</text>')
    file.write(("\n".join([*rows, "</svg>"]) + "\n").encode())


def _png(file: BinaryIO, lines: Sequence[Line], title: str) -> None:
    from PIL import Image, ImageDraw, ImageFont

    top, count = _top(lines), max(len(line.values) for line in lines)
    x, y = _ticks(top, count)
    image = Image.new("RGB", (WIDTH, HEIGHT), "#ffffff")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    draw.text((LEFT, 8), title, "#000000", font)
    for place, label in y:
        draw.line((LEFT, place, WIDTH - RIGHT, place), "#dddddd")
        draw.text((LEFT - 8, place), label, "#000000", font, anchor="rm")
    for place, label in x:
        draw.line((place, TOP, place, HEIGHT - BOTTOM), "#eeeeee")
        draw.text((place, HEIGHT - BOTTOM + 8), label, "#000000", font, anchor="mt")
    for index, line in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        draw.line(_points(line, top, count), colour, 2)
        draw.text((LEFT + index * 220, 28), line.name, colour, font)
    image.save(file, "PNG")
