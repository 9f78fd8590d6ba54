"""A first look at every cell: its picture decoded once, a small copy of it, and what can be measured without a model.

Formulas: CIE 1976 L*a*b* of sRGB under D65 (IEC 61966-2-1 and CIE 15), chroma sqrt(a² + b²).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.command.progress import progress
from lorapipe_engine.pictures.opening import GATE, open_picture, turn_upright
from lorapipe_inspect.grid.cells import Cell

SMALL = 128  # pixels of the longest side of the copies that are compared
DARK, LIGHT = 2, 253  # levels below and above which a pixel counts as clipped
_THREADS = 4
_WHITE = np.array([0.95047, 1.0, 1.08883], dtype=np.float32)  # D65
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    dtype=np.float32,
)
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Look:
    """What a picture looks like. ``small``: (h, w, 3) uint8. ``size``: width and height of the file.

    ``chroma``: mean chroma, 0 to about 100. ``clipped``: share of pixels with a channel below 2 or above 253, 0..1.
    ``edges``: mean difference of neighbouring pixels' brightness, 0..255, at full size.
    """

    size: tuple[int, int]
    small: NDArray[np.uint8]
    chroma: float
    clipped: float
    edges: float


def look_at(cells: Sequence[Cell]) -> tuple[list[Cell], list[Look | None]]:
    """Look at all cells, in threads. Cells whose pictures cannot be decoded come back with their error."""
    done: list[Cell] = []
    looks: list[Look | None] = []
    with (
        ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool,
        progress(len(cells), "reading", "cell") as bar,
    ):
        for cell, look, error in pool.map(_look, cells):
            done.append(replace(cell, error=error) if error else cell)
            looks.append(look)
            bar.update()
    return done, looks


def _look(cell: Cell) -> tuple[Cell, Look | None, str | None]:
    if cell.error:
        return cell, None, None
    try:
        pixels = decode(cell)
        return cell, measure(pixels), None
    except Exception as error:  # Pillow raises whatever its readers meet
        reason = error.strerror if isinstance(error, OSError) and error.strerror else None
        return cell, None, f"cannot be read ({reason})" if reason else "no picture that can be decoded"


def decode(cell: Cell) -> NDArray[np.uint8]:
    """The pixels of a cell, (h, w, 3). Raises what Pillow raises for a broken picture."""
    with open_picture(cell.path) as picture, GATE.room(picture.width * picture.height):
        return np.asarray(turn_upright(picture).convert("RGB"))


def measure(pixels: NDArray[np.uint8]) -> Look:
    """The look of pixels (h, w, 3) in sRGB."""
    from PIL import Image

    height, width = pixels.shape[:2]
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    steps = [np.abs(np.diff(grey, axis=axis)) for axis in (0, 1) if grey.shape[axis] > 1]
    extreme = ((pixels < DARK) | (pixels > LIGHT)).any(axis=-1)
    image = Image.fromarray(pixels)
    image.thumbnail((SMALL, SMALL), Image.Resampling.BOX)
    small = np.asarray(image)
    lab = to_lab(small)
    return Look(
        (width, height),
        small,
        float(np.hypot(lab[..., 1], lab[..., 2]).mean()),
        float(extreme.mean()),
        float(np.mean([step.mean() for step in steps])) if steps else 0.0,
    )


def to_lab(pixels: NDArray[np.uint8]) -> Floats:
    """CIE L*a*b* of sRGB pixels (..., 3), as float32: L 0..100, a and b about -100..100."""
    linear = _LINEAR[pixels]
    ratio = (linear @ _TO_XYZ.T) / _WHITE
    cut = (6 / 29) ** 3
    f = np.where(ratio > cut, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack(
        [116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1
    ).astype(np.float32)


def _linear_levels() -> Floats:
    levels = np.arange(256, dtype=np.float32) / 255
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4).astype(np.float32)


_LINEAR = _linear_levels()


def distance(one: Look, other: Look) -> float:
    """Mean CIE76 difference of two pictures, 0 to about 100; those of another size are brought to the first's."""
    small = other.small
    if small.shape != one.small.shape:
        from PIL import Image

        height, width = one.small.shape[:2]
        small = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BOX))
    apart = to_lab(one.small) - to_lab(small)
    return float(np.sqrt((apart**2).sum(axis=-1)).mean())


def broken(cells: Sequence[Cell]) -> Iterator[str]:
    """A line for each cell that could not be read."""
    yield from (f"{cell.path}: {cell.error}" for cell in cells if cell.error)
