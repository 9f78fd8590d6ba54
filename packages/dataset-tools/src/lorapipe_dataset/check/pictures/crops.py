"""Pictures that are parts of others: every whole picture is compared with windows of all the others.

Windows of the part's shape lie on a grid of places and sizes; a window and a picture are compared as 6x6 means of grey,
which sums over areas (an integral image) give in four look-ups each. What is alike is moved and sized until it fits, at
16x16; what fits is looked at once more in the files, at 48x48 in colour.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lorapipe_dataset.check.pictures.dataset import Picture
from lorapipe_dataset.check.pictures.hashing import Small
from lorapipe_engine.command.progress import progress

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

SMALLEST, STEP = 0.33, 0.89  # of the largest window that fits; of each window, the next smaller one
SHIFT = 0.1  # of a window between two places
SHAPES = 8  # shapes that are told apart while the sides' ratio doubles
COARSE, FINE, EXACT = 6, 16, 48  # cells a side
ALIKE, FITTING, VERIFIED = 0.80, 0.93, 0.93  # correlations of the three looks
CONTRAST = 10.0  # levels that cells deviate from their mean at least: less has no form to find
WHOLE = 0.95  # share of a side from which a window is the picture itself
TRIED = 4  # pictures that a part is fitted into, the likest first
MOST = 1000  # pictures that are compared; the time grows with their square


@dataclass(frozen=True)
class Crop:
    """``part`` is what ``whole`` shows in ``box``: left, top, right, bottom as shares of its sides."""

    part: Picture
    whole: Picture
    box: tuple[float, float, float, float]

    @property
    def area(self) -> float:
        """Share of the whole picture."""
        left, top, right, bottom = self.box
        return (right - left) * (bottom - top)


def find_crops(pictures: Sequence[Picture], same: Collection[frozenset[Path]]) -> Iterator[Crop]:
    """The pictures that are part of another, each once, with the one that fits best. ``same``: pairs of paths that are
    copies of each other anyway.
    """
    known = [(one, _Sums(one.look.small)) for one in pictures if one.look is not None and one.look.small]
    for number, candidates in sorted(_candidates([sums for _, sums in known]).items()):
        part, sums = known[number]
        usable = [row for row in candidates if frozenset((part.path, known[row.whole][0].path)) not in same]
        for row in sorted(usable, key=lambda row: -row.likeness)[:TRIED]:
            box = _fit(known[row.whole][1], sums, row.box)
            if box is not None and _is_part(crop := Crop(part, known[row.whole][0], box)):
                yield crop
                break


class _Candidate(NamedTuple):
    """The window of a picture (its number) that is most like a part."""

    likeness: float
    whole: int
    box: Array


def _candidates(known: Sequence[_Sums]) -> dict[int, list[_Candidate]]:
    """By the number of the part the pictures that may hold it."""
    import numpy as np

    wholes = [sums.cells(sums.all, COARSE) for sums in known]
    shapes: dict[int, list[int]] = {}
    for number, (sums, cells) in enumerate(zip(known, wholes, strict=True)):
        if float(cells.std()) >= CONTRAST:
            shapes.setdefault(round(SHAPES * math.log2(sums.width / sums.height)), []).append(number)
    parts = {shape: _unit(np.concatenate([wholes[i] for i in rows])) for shape, rows in shapes.items()}
    by_part: dict[int, list[_Candidate]] = {}
    with progress(len(known), "parts", "picture") as bar:
        for whole, sums in enumerate(known):
            for shape, rows in shapes.items():
                boxes = _windows(sums.width, sums.height, 2 ** (shape / SHAPES))
                cells = sums.cells(boxes, COARSE, rounded=True)
                likeness = _unit(cells) @ parts[shape].T
                likeness[cells.std(axis=1) < CONTRAST / 2] = -1
                for column in np.nonzero(likeness.max(axis=0) >= ALIKE)[0].tolist():
                    if rows[column] != whole:
                        at = int(likeness[:, column].argmax())
                        row = _Candidate(float(likeness[at, column]), whole, boxes[at])
                        by_part.setdefault(rows[column], []).append(row)
            bar.update()
    return by_part


class _Sums:
    """Means of a small picture over any rectangles, by its integral image."""

    def __init__(self, small: Small) -> None:
        import numpy as np

        self.width, self.height = small.width, small.height
        grey = np.frombuffer(small.rows, dtype=np.uint8).reshape(small.height, small.width)
        self.all = np.array([[0.0, 0.0, small.width, small.height]])
        self._sums = np.zeros((small.height + 1, small.width + 1))
        self._sums[1:, 1:] = grey.cumsum(0, dtype=np.float64).cumsum(1)

    def cells(self, boxes: Array, count: int, *, rounded: bool = False) -> Array:
        """Means (n, count²) of the cells of boxes (n, 4): left, top, right, bottom in pixels, with fractions unless
        ``rounded``, which is quicker."""
        import numpy as np

        steps = np.linspace(0.0, 1.0, count + 1)
        across = boxes[:, :1] + (boxes[:, 2:3] - boxes[:, :1]) * steps
        down = boxes[:, 1:2] + (boxes[:, 3:] - boxes[:, 1:2]) * steps
        if rounded:
            down, across = np.rint(down).astype(np.int64), np.rint(across).astype(np.int64)
            sums = self._sums[down[:, :, None], across[:, None, :]]
        else:
            sums = self._at(down[:, :, None], across[:, None, :])
        areas = np.diff(down, axis=1)[:, :, None] * np.diff(across, axis=1)[:, None, :]
        areas = np.maximum(areas, 1e-3)
        means: Array = np.diff(np.diff(sums, axis=1), axis=2) / areas
        return means.reshape(len(boxes), -1).astype(np.float32)

    def _at(self, down: Array, across: Array) -> Array:
        """The integral at fractional places: bilinear, which is exact for pixels that are squares of one level."""
        import numpy as np

        top = np.clip(down.astype(np.int64), 0, self.height - 1)
        left = np.clip(across.astype(np.int64), 0, self.width - 1)
        y, x = down - top, across - left
        upper = self._sums[top, left] * (1 - x) + self._sums[top, left + 1] * x
        lower = self._sums[top + 1, left] * (1 - x) + self._sums[top + 1, left + 1] * x
        mixed: Array = upper * (1 - y) + lower * y
        return mixed


def _unit(cells: Array) -> Array:
    """Rows without their mean, of length 1."""
    import numpy as np

    centred: Array = cells - cells.mean(axis=1, keepdims=True)
    lengths: Array = np.sqrt((centred**2).sum(axis=1, keepdims=True))
    rows: Array = centred / np.maximum(lengths, 1e-6)
    return rows


def _windows(width: int, height: int, ratio: float) -> Array:
    """Boxes of a shape in a picture, from the largest that fits down to a third of it."""
    import numpy as np

    largest = min(float(width), height * ratio)
    boxes = []
    scale = 1.0
    while scale >= SMALLEST:
        wide, tall = largest * scale, largest * scale / ratio
        lefts = np.linspace(0, width - wide, max(1, round((width - wide) / (SHIFT * wide)) + 1))
        tops = np.linspace(0, height - tall, max(1, round((height - tall) / (SHIFT * tall)) + 1))
        x, y = (grid.ravel() for grid in np.meshgrid(lefts, tops))
        boxes.append(np.stack([x, y, x + wide, y + tall], axis=1))
        scale *= STEP
    return np.concatenate(boxes)


def _fit(whole: _Sums, part: _Sums, start: Array) -> tuple[float, float, float, float] | None:
    """The box near ``start`` that shows the part, as shares of the whole's sides; None where none does."""
    import numpy as np

    wanted = _unit(part.cells(part.all, FINE))[0]
    centre = np.array([(start[0] + start[2]) / 2, (start[1] + start[3]) / 2])
    wide, ratio = float(start[2] - start[0]), part.width / part.height
    score = -1.0
    for step in (0.05, 0.025, 0.012, 0.006, 0.003):
        moves = np.array([(i, j, k) for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]) * step
        for _ in range(3):
            widths = wide * (1 + moves[:, 2])
            half = np.stack([widths, widths / ratio], axis=1) / 2
            middles = centre + moves[:, :2] * half * 2
            boxes = np.concatenate([middles - half, middles + half], axis=1)
            boxes = np.clip(boxes, 0, [whole.width, whole.height, whole.width, whole.height])
            usable = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) > 1
            likeness = np.where(
                usable, _unit(whole.cells(np.where(usable[:, None], boxes, start), FINE)) @ wanted, -1
            )
            place = int(likeness.argmax())
            if likeness[place] <= score:
                break
            score, centre, wide = float(likeness[place]), middles[place], float(widths[place])
    half = np.array([wide, wide / ratio]) / 2
    sides = np.array([whole.width, whole.height])
    low, high = np.clip(centre - half, 0, sides) / sides, np.clip(centre + half, 0, sides) / sides
    if score < FITTING or min(high - low) <= 0 or min(high - low) >= WHOLE:
        return None
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _is_part(crop: Crop) -> bool:
    """Whether the files show the same, in colour and more detail."""
    import numpy as np
    from PIL import Image

    from lorapipe_dataset.check.pictures.look import flat_picture

    whole, part = flat_picture(crop.whole.path), flat_picture(crop.part.path)
    box = tuple(share * side for share, side in zip(crop.box, (*whole.size, *whole.size), strict=True))
    size = (EXACT, EXACT)
    one = np.asarray(whole.resize(size, Image.Resampling.BOX, box=box), dtype=np.float32)  # type: ignore[arg-type]
    other = np.asarray(part.resize(size, Image.Resampling.BOX), dtype=np.float32)
    return float((_unit(one.reshape(1, -1)) * _unit(other.reshape(1, -1))).sum()) >= VERIFIED
