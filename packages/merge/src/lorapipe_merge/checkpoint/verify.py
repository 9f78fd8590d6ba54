"""The proof of a merge: the written file is read again and W' - W held against the factors, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.checkpoints.opened import Base
from lorapipe_engine.command.progress import progress
from lorapipe_engine.errors import ProblemFound
from lorapipe_engine.files.dtypes import decode, encode
from lorapipe_engine.files.tensorfile import WeightFile, open_tensors, quote
from lorapipe_merge.checkpoint.change import changes_of, piece_rows
from lorapipe_merge.checkpoint.report import Report
from lorapipe_merge.checkpoint.stream import layer_shape, segments
from lorapipe_merge.matching import Contribution
from lorapipe_merge.output import COPY, PIECE, Buffers, read_numbers

Array = NDArray[Any]

# Half a step at 1, and half the smallest step.
_ROUNDING: Mapping[str, tuple[float, float]] = {
    "F16": (2.0**-11, 2.0**-25),
    "BF16": (2.0**-8, 2.0**-134),
    "F32": (2.0**-24, 2.0**-150),
    "F64": (2.0**-24, 2.0**-150),
}
# Float32 maths: a sum over the rank, and what DoRA and rotations do with the weight.
_MATHS = 4e-6


def verify_file(
    base: Base,
    number: int,
    changes: Mapping[tuple[int, str], Sequence[Contribution]],
    written: Path,
    report: Report,
) -> None:
    """Check every tensor of a written file. Raises ProblemFound naming the first that is not what it should be."""
    source = base.files[number].weights
    worst, same, changed = 0.0, 0, 0
    buffers = Buffers()
    with open_tensors(written) as result, progress(result.data_bytes, "verifying", "B") as bar:
        for key, info in result.tensors.items():
            contributions = changes.get((number, key))
            if contributions:
                worst = max(worst, _check_changed(source, result, key, contributions, buffers))
                changed += 1
            else:
                _check_same(source, result, key)
                same += 1
            bar.update(info.size)
    before = report.checked or {"worst": 0.0, "same": 0, "changed": 0}
    report.checked = {
        "worst": max(worst, before["worst"]),
        "same": same + before["same"],
        "changed": changed + before["changed"],
    }


def _check_changed(
    source: WeightFile, result: WeightFile, key: str, contributions: Sequence[Contribution], buffers: Buffers
) -> float:
    """The largest difference from W + ΔW, in units of what rounding explains."""
    shape = source.tensors[key].shape
    columns = math.prod(shape[1:])
    step, smallest = _ROUNDING[result.tensors[key].dtype]
    worst = 0.0
    for place, parts in segments(contributions, shape[0]):
        changes = changes_of(parts, layer_shape(shape, place), np.float64) if parts else []
        rows = piece_rows(changes, place.stop - place.start, columns, PIECE // 2)
        for start in range(place.start, place.stop, rows):
            stop = min(place.stop, start + rows)
            written = read_numbers(result, key, start * columns, stop * columns, buffers).astype(np.float64)
            weight = read_numbers(source, key, start * columns, stop * columns, buffers).astype(np.float64)
            weight = weight.reshape(-1, columns)
            delta = np.zeros_like(weight)
            for change in changes:
                change.rows(start - place.start, stop - place.start, weight, delta)
            written = written.reshape(weight.shape)
            allowed = step * np.abs(written) + smallest
            allowed += _MATHS * (np.abs(delta) + 0.01 * np.abs(delta).max(initial=0) + 0.25 * np.abs(weight))
            off = np.abs(written - (weight + delta)) / allowed
            worst = max(worst, float(off.max(initial=0.0)))
    if not worst <= 1.0:
        raise ProblemFound(f"{quote(key)[1:-1]}: the written file does not hold W + ΔW; nothing was kept")
    return worst


def _check_same(source: WeightFile, result: WeightFile, key: str) -> None:
    before, after = source.tensors[key], result.tensors[key]
    if before.dtype == after.dtype:
        equal = all(
            source.raw(key, start, start + COPY) == result.raw(key, start, start + COPY)
            for start in range(0, before.size, COPY)
        )
    else:
        count = math.prod(before.shape)
        width = before.size // max(1, count)
        other = after.size // max(1, count)
        equal = all(
            bytes(
                encode(
                    decode(before.dtype, source.raw(key, i * width, j * width), (j - i,)), after.dtype
                ).data
            )
            == bytes(result.raw(key, i * other, j * other))
            for i in range(0, count, PIECE)
            for j in (min(count, i + PIECE),)
        )
    if not equal:
        raise ProblemFound(
            f"{quote(key)[1:-1]}: the written file does not hold the base's tensor; nothing was kept"
        )
