"""Figures of a picture's pixels: how sharp, how colourful, whether it has bars at its edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

LINE_STEP = 24  # levels by which a bar's edge differs from the picture
LINE_SHARE = 0.6  # share of the edge's length that does
STRONGEST = 0.998  # quantile of the differences that counts as the strongest edge
BLANK = 4.0  # levels of spread below which a picture shows nothing
FLAT = 3.0  # levels of spread that a bar may have


@dataclass(frozen=True)
class Measures:
    """``sharpness``: the strong edges' second derivative over their height (0 blurred, about 1 crisp);
    ``laplacian``: the Laplacian's variance; ``contrast``: spread of the grey levels; ``chroma``: mean difference of the
    colour channels; all in levels of 0..255. ``bars``: share of the picture that flat bars take at left, top, right,
    bottom.
    """

    sharpness: float
    laplacian: float
    contrast: float
    chroma: float
    bars: tuple[float, float, float, float]


def measure(picture: Image) -> Measures:
    """Measure an RGB picture; reduce a large one before."""
    import numpy as np

    grey = np.asarray(picture.convert("L"))
    sharpness, laplacian = _sharpness(grey)
    step = max(1, min(grey.shape) // 128)
    colours = np.asarray(picture)[::step, ::step].astype(np.int16)
    chroma = np.abs(np.diff(colours, axis=2)).mean()
    return Measures(sharpness, laplacian, float(grey[::step, ::step].std()), float(chroma), _bars(grey))


def _sharpness(grey: Any) -> tuple[float, float]:
    """Compare, at the strongest edges, the rise from one pixel to the next with the rise over six: a crisp edge is one
    pixel wide, so nearly all of its rise lies in one step. Also the variance of the Laplacian.
    """
    import numpy as np

    if min(grey.shape) < 8:
        return 1.0, 0.0
    levels = grey.astype(np.int16)
    inner = levels[1:-1, 1:-1]
    curve = levels[:-2, 1:-1] + levels[2:, 1:-1] + levels[1:-1, :-2] + levels[1:-1, 2:] - 4 * inner
    variance = float(curve.var(dtype=np.float32))
    steps = _top(levels[:, 1:] - levels[:, :-1])
    wide = _top(levels[:, 6:] - levels[:, :-6])
    if wide < 12:
        # No edge at all: a blank picture has nothing that could be blurred, any other is nothing but soft.
        return (1.0 if grey.std() < BLANK else 0.0), variance
    return steps / wide, variance


def _top(differences: Any) -> float:
    """The size that only the strongest differences of 8-bit levels reach."""
    import numpy as np

    counts = np.bincount(np.abs(differences).ravel(), minlength=256)
    return float(np.searchsorted(counts.cumsum(), STRONGEST * differences.size))


def _bars(grey: Any) -> tuple[float, float, float, float]:
    """Widths of flat bars with a straight edge, as shares: left, top, right, bottom."""
    import numpy as np

    # A quarter of the pixels along a bar tells its spread well enough.
    rows, columns = grey[:, ::4].astype(np.float32), np.ascontiguousarray(grey[::4].T, dtype=np.float32)
    top, bottom = _bar(rows), _bar(rows[::-1])
    left, right = _bar(columns), _bar(columns[::-1])
    return left, top, right, bottom


def _bar(rows: Any) -> float:
    """Height of a flat bar at the top, 0 if there is none: its rows have one level, the next differs along most of
    its length.
    """
    import numpy as np

    spread = rows[: len(rows) // 2].std(axis=1)
    busy = np.flatnonzero(spread > FLAT)
    height = int(busy[0]) if len(busy) else 0
    if height == 0 or abs(float(rows[0].mean() - rows[height - 1].mean())) > FLAT:
        return 0.0
    level = float(rows[0].mean())
    # Scaling may have left a mixed row between the two.
    after = rows[min(height + 1, len(rows) - 1)]
    differs = float((np.abs(after - level) > LINE_STEP).mean())
    return height / len(rows) if differs >= LINE_SHARE else 0.0
