"""One labelled PNG of all cells, in pages where it would be too large."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorapipe_engine.command.text import printable
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.writing.atomic import atomic_write, check_output
from lorapipe_inspect.grid.cells import Cell
from lorapipe_inspect.grid.layout import Axis, Grid

if TYPE_CHECKING:
    from PIL.Image import Image

MOST_PIXELS = 64_000_000  # of a page, which is 192 MB decoded
MOST_SIDE = 16_000  # pixels; browsers and viewers give up soon after
GAP = 4
INK, SOFT, PAPER, EMPTY = "#1d1b22", "#6a6672", "#ffffff", "#e4e2e8"
_MOST_LINES = 6
_CUT = 200  # letters of a label that are looked at


@dataclass(frozen=True)
class Part:
    """A piece of a page: a sheet's title, and which columns and rows of it are drawn."""

    sheet: tuple[int, ...]
    columns: range
    rows: range


@dataclass(frozen=True)
class Measures:
    """Sizes in pixels: a cell's picture, the strip of labels at the left, those above, a line of text."""

    width: int
    height: int
    left: int
    top: int
    line: int


def write_sheets(
    path: Path, grid: Grid, paint: Callable[[Cell], Image], size: tuple[int, int], title: str, *, force: bool
) -> list[Path]:
    """Draw the grid into ``path``; more pages are ``NAME-2.png`` and so on. ``paint`` gives a cell's picture.

    ``size``: width and height of the pictures on the sheet. Raises OutputError; InputError where a single cell is too
    large for a page.
    """
    measures = _measures(grid, size)
    pages = list(_pages(grid, measures))
    paths = [path, *(path.with_name(f"{path.stem}-{n}{path.suffix}") for n in range(2, len(pages) + 1))]
    for one in paths:
        check_output(one, force=force)
    for one, parts in zip(paths, pages, strict=True):
        image = _draw(grid, parts, measures, paint, title)
        with atomic_write(one, force=force) as file:
            image.save(file, "PNG", compress_level=6)
    return paths


def _measures(grid: Grid, size: tuple[int, int]) -> Measures:
    line = max(12, min(28, (size[0] + size[1]) // 32))
    rows = grid.axes[1] if len(grid.axes) > 1 else None
    labels = [label_of(rows, index) for index in range(len(rows.values))] if rows else []
    longest = max((len(label[:_CUT]) for label in labels), default=0)
    left = min(max(size[0] * 3 // 4, 8 * line), int(longest * line * 0.6) + 3 * GAP) if rows else 0
    return Measures(size[0], size[1], max(left, 4 * line if rows else GAP), 0, line)


# -------------------------------------------------------------------------------- what is on which page


def _pages(grid: Grid, measures: Measures) -> Iterator[list[Part]]:
    """Sheets one below the other as far as they fit; one too large by itself is cut between its cells."""
    columns, rows = _count(grid, 0), _count(grid, 1)
    head = 5 * measures.line
    across = max(1, (MOST_SIDE - measures.left) // (measures.width + GAP))
    wide = min(columns, across)
    width = measures.left + wide * (measures.width + GAP)
    tall = min(MOST_SIDE, MOST_PIXELS // width)
    down = (tall - 2 * head) // (measures.height + GAP)
    if down < 1 or width > MOST_SIDE:
        raise InputError(
            f"cells of {measures.width} x {measures.height} are too large for one sheet; give --size, as --size 1024"
        )
    waiting: list[Part] = []
    height = head
    for sheet in grid.sheets():
        for at in range(0, columns, across):
            for row in range(0, rows, down):
                part = Part(sheet, range(at, min(columns, at + across)), range(row, min(rows, row + down)))
                needs = head + len(part.rows) * (measures.height + GAP)
                if waiting and height + needs > tall:
                    yield waiting
                    waiting, height = [], head
                waiting.append(part)
                height += needs
    yield waiting


def _count(grid: Grid, axis: int) -> int:
    return len(grid.axes[axis].values) if axis < len(grid.axes) else 1


# -------------------------------------------------------------------------------- drawing


def _draw(
    grid: Grid, parts: Sequence[Part], measures: Measures, paint: Callable[[Cell], Image], title: str
) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(measures.line)
    width = max(measures.left + len(part.columns) * (measures.width + GAP) for part in parts)
    heads = [_head(grid, part, measures, font) for part in parts]
    body = [len(part.rows) * (measures.height + GAP) for part in parts]
    above = 2 * measures.line if title else GAP
    image = Image.new("RGB", (width, above + sum(heads) + sum(body)), PAPER)
    pen = ImageDraw.Draw(image)
    if title:
        pen.text((GAP, GAP), _fitted(title, font, width - 2 * GAP), INK, font)
    top = above
    for part, head, height in zip(parts, heads, body, strict=True):
        _draw_part(image, pen, font, grid, part, measures, (top, head), paint)
        top += head + height
    return image


def _head(grid: Grid, part: Part, measures: Measures, font: Any) -> int:
    """Pixels above the first row: the sheet's title and the labels of the columns."""
    labels = [_wrapped(text, font, measures.width) for text in _labels(grid, 0, part.columns)]
    lines = max((text.count("\n") + 1 for text in labels), default=0)
    return int(((1 if part.sheet else 0) + lines) * measures.line * 1.25 + 3 * GAP)


def _draw_part(
    image: Image,
    pen: Any,
    font: Any,
    grid: Grid,
    part: Part,
    measures: Measures,
    place: tuple[int, int],
    paint: Callable[[Cell], Image],
) -> None:
    top, head = place
    if part.sheet:
        pen.text(
            (GAP, top + GAP), _fitted(sheet_title(grid, part.sheet), font, image.width - 2 * GAP), INK, font
        )
    for number, text in enumerate(_labels(grid, 0, part.columns)):
        x = measures.left + number * (measures.width + GAP) + measures.width / 2
        label = _wrapped(text, font, measures.width)
        pen.multiline_text((x, top + head - GAP), label, INK, font, anchor="md", align="center", spacing=2)
    for row, text in zip(part.rows, _labels(grid, 1, part.rows), strict=True):
        y = top + head + (row - part.rows.start) * (measures.height + GAP)
        if len(grid.axes) > 1:
            label = _wrapped(text, font, measures.left - 2 * GAP)
            middle = y + measures.height / 2
            pen.multiline_text((GAP, middle), label, INK, font, anchor="lm", spacing=2)
        for number, column in enumerate(part.columns):
            x = measures.left + number * (measures.width + GAP)
            cell = grid.at((column, row, *part.sheet)[: len(grid.axes)])
            _draw_cell(image, pen, font, cell, (x, y), measures, paint)


def _draw_cell(
    image: Image,
    pen: Any,
    font: Any,
    cell: Cell | None,
    place: tuple[int, int],
    measures: Measures,
    paint: Callable[[Cell], Image],
) -> None:
    x, y = place
    if cell is not None and not cell.error:
        picture = fitted(paint(cell), (measures.width, measures.height))
        image.paste(
            picture, (x + (measures.width - picture.width) // 2, y + (measures.height - picture.height) // 2)
        )
        return
    pen.rectangle((x, y, x + measures.width - 1, y + measures.height - 1), EMPTY)
    words = "missing" if cell is None else "no picture"
    middle = (x + measures.width / 2, y + measures.height / 2)
    pen.text(middle, words, SOFT, font, anchor="mm")


def fitted(picture: Image, size: tuple[int, int]) -> Image:
    """A picture as large as fits into ``size``; one that is that large already as it is."""
    from PIL import Image

    scale = min(size[0] / picture.width, size[1] / picture.height)
    if scale == 1:
        return picture
    wanted = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(wanted, Image.Resampling.LANCZOS)


def sheet_title(grid: Grid, sheet: Sequence[int]) -> str:
    """What a sheet shows: ``seed: 7, CFG: 5``."""
    return ", ".join(
        f"{axis.title}: {axis.labels[index]}" for axis, index in zip(grid.axes[2:], sheet, strict=True)
    )


def _labels(grid: Grid, axis: int, which: range) -> list[str]:
    if axis >= len(grid.axes):
        return ["" for _ in which]
    return [label_of(grid.axes[axis], index) for index in which]


def label_of(axis: Axis, index: int) -> str:
    """A value with its axis where it is a number, for 0.7 says little alone: ``weight: 0.7``."""
    value, label = axis.values[index], axis.labels[index]
    return f"{axis.title}: {label}" if isinstance(value, int | float) else label


def _fitted(text: str, font: Any, width: float) -> str:
    line = printable(text)[: _CUT * 4]
    while line and font.getlength(line) > width:
        line = line[: int(len(line) * 0.9)].rstrip("… ") + "…" if len(line) > 2 else ""
    return line


def _wrapped(text: str, font: Any, width: float) -> str:
    """A label in lines of a width; words too long for it are cut between letters."""
    lines = [""]
    for word in printable(text[:_CUT]).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines += [""] if lines[-1] else []
        while word and font.getlength(word) > width:
            fits = max(1, int(len(word) * width / font.getlength(word)))
            lines[-1], word = word[:fits], word[fits:]
            lines.append("")
        lines[-1] = word
    return "\n".join(lines[:_MOST_LINES]).strip("\n")
