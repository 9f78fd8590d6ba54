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

    levels = np.asarray(picture, dtype=np.int16)
    red, green, blue = levels[..., 0], levels[..., 1], levels[..., 2]
    grey = (red * 2 + green * 5 + blue) / 8
    grey = grey.astype(np.float32)
    sharpness, laplacian = _sharpness(grey)
    step = max(1, min(grey.shape) // 128)
    chroma = np.abs(red - green)[::step, ::step].mean() + np.abs(green - blue)[::step, ::step].mean()
    return Measures(sharpness, laplacian, float(grey.std()), float(chroma / 2), _bars(grey))


def _sharpness(grey: Any) -> tuple[float, float]:
    """Compare, at the strongest edges, the second derivative with the rise around it: a crisp edge is one pixel wide,
    so nearly all of its rise lies in one step. Also the variance of the Laplacian.
    """
    import numpy as np

    if min(grey.shape) < 8:
        return 1.0, 0.0
    inner = grey[1:-1, 1:-1]
    curve = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    steps = np.abs(np.diff(grey, axis=1))[1:-1, :]  # a rise from one pixel to the next
    wide = np.abs(grey[:, 6:] - grey[:, :-6])[1:-1, :]  # and over six of them
    strongest = float(np.quantile(wide, STRONGEST))
    if strongest < 12:
        # No edge at all: a blank picture has nothing that could be blurred, any other is nothing but soft.
        return (1.0 if grey.std() < BLANK else 0.0), float(curve.var())
    return float(np.quantile(steps, STRONGEST)) / strongest, float(curve.var())


def _bars(grey: Any) -> tuple[float, float, float, float]:
    """Widths of flat bars with a straight edge, as shares: left, top, right, bottom."""
    top, bottom = _bar(grey), _bar(grey[::-1])
    left, right = _bar(grey.T), _bar(grey.T[::-1])
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
