"""One HTML page of all cells that needs nothing else: any two axes, sheets, full view, flip, figures, parameters."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lorapipe_engine.command.progress import progress
from lorapipe_engine.command.text import printable
from lorapipe_engine.files.writing.atomic import atomic_write
from lorapipe_inspect.grid.cells import Cell
from lorapipe_inspect.grid.layout import Grid
from lorapipe_inspect.grid.sheet import fitted

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL.Image import Image

TEMPLATE = Path(__file__).with_name("page.html")
DATA, PICTURES = "/*DATA*/null", "/*PICTURES*/null"
HEAVY = 50 << 20  # bytes of a page that browsers are slow with
_FOLDERS = re.compile(r"^(?:[A-Za-z]:)?[\\/].*[\\/]")


@dataclass(frozen=True)
class Shown:
    """A figure that the page has on its cells. ``digits``: behind the point."""

    key: str
    title: str
    about: str
    digits: int


@dataclass(frozen=True)
class Page:
    """What the page shows beside the cells. ``bases``: the base cell of each, ``figures``: numbers of each, by key."""

    title: str
    bases: Sequence[int | None]
    figures: Sequence[Mapping[str, float]]
    shown: Sequence[Shown] = ()
    verdict: Sequence[str] = ()
    quality: int = 85
    side: int | None = None
    numbers: dict[str, int] = field(default_factory=dict)  # of pictures by the hash of their bytes


def write_page(path: Path, grid: Grid, page: Page, paint: Callable[[Cell], Image], *, force: bool) -> int:
    """Write the page, a picture at a time; its size in bytes. Each picture is in it once, as WebP. Raises
    OutputError.
    """
    before, between = TEMPLATE.read_text(encoding="utf-8").split(PICTURES)
    between, after = between.split(DATA)
    with atomic_write(path, force=force) as file:
        file.write(before.encode() + b"[")
        chosen = [_put(file, cell, page, paint) for cell in _with_bar(grid.cells)]
        file.write(b"]" + between.encode() + _json(_data(grid, page, chosen)) + after.encode())
        return file.tell()


def _with_bar(cells: Sequence[Cell]) -> Any:
    with progress(len(cells), "encoding", "cell") as bar:
        for cell in cells:
            yield cell
            bar.update()


def _put(
    file: BinaryIO, cell: Cell, page: Page, paint: Callable[[Cell], Image]
) -> tuple[int, tuple[int, int]] | None:
    """The number and the size of a cell's picture, which is written if it was not there; None without a picture."""
    if cell.error:
        return None
    image = paint(cell)
    if page.side and max(image.size) > page.side:
        image = fitted(image, (page.side, page.side))
    name = hashlib.sha256(image.tobytes()).hexdigest() + str(image.size)
    if name not in page.numbers:
        buffer = BytesIO()
        image.save(buffer, "WEBP", quality=page.quality, method=4)
        file.write(b',"' if page.numbers else b'"')
        file.write(base64.b64encode(buffer.getbuffer()) + b'"')
        page.numbers[name] = len(page.numbers)
    return page.numbers[name], image.size


def _data(grid: Grid, page: Page, chosen: Sequence[tuple[int, tuple[int, int]] | None]) -> dict[str, Any]:
    return {
        "title": printable(page.title),
        "axes": [
            {
                "name": printable(axis.name),
                "title": printable(axis.title),
                "labels": [*map(printable, axis.labels)],
            }
            for axis in grid.axes
        ],
        "places": {",".join(map(str, place)): index for place, index in grid.places.items()},
        "cells": [
            {
                "picture": picture[0] if picture else None,
                "size": picture[1] if picture else None,
                "base": base,
                "words": words_of(grid, index),
                "parameters": parameters_of(cell),
                "error": printable(cell.error) if cell.error else None,
                "figures": dict(figures),
            }
            for index, (cell, picture, base, figures) in enumerate(
                zip(grid.cells, chosen, page.bases, page.figures, strict=True)
            )
        ],
        "figures": [vars(one) for one in page.shown],
        "verdict": [printable(line) for line in page.verdict],
    }


def words_of(grid: Grid, index: int) -> str:
    """What a cell is, in the words of its axes."""
    cell = grid.cells[index]
    words = []
    for axis in grid.axes:
        value = cell.values.get(axis.name)
        if value in axis.values:
            words.append(f"{axis.title}: {axis.labels[axis.values.index(value)]}")
    return printable(", ".join(words) or cell.path.name)


def parameters_of(cell: Cell) -> str:
    """The cell's parameters as they stand in its picture or record; made of its values where it has none."""
    if cell.infotext:
        return cell.infotext
    lines = [str(cell.values["prompt"])] if "prompt" in cell.values else []
    if "negative" in cell.values:
        lines.append(f"Negative prompt: {cell.values['negative']}")
    rest = [
        f"{name}: {_FOLDERS.sub('', str(value))}"
        for name, value in cell.values.items()
        if name not in ("prompt", "negative")
    ]
    return "\n".join([*lines, ", ".join(rest)]).strip()


def _json(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # A label must not end the script.
    for letter, escape in (("<", "\\u003c"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029")):
        text = text.replace(letter, escape)
    return text.encode("utf-8", "replace")
