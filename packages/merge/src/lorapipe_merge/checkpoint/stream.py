"""One tensor of the result: read in pieces of rows, changed, rounded once, and written to its place."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine import native
from lorapipe_engine.errors import ProblemFound
from lorapipe_engine.files.tensorfile import WeightFile, quote
from lorapipe_engine.models.keys import Place
from lorapipe_merge.checkpoint.change import Change, Product, changes_of, piece_rows
from lorapipe_merge.checkpoint.report import Moved
from lorapipe_merge.finite import is_finite
from lorapipe_merge.matching import Contribution
from lorapipe_merge.output import (
    PIECE,
    Buffers,
    Target,
    bytes_of,
    copy_tensor,
    encode_numbers,
    read_numbers,
)

__all__ = ["SIZES", "cast_tensor", "check_values", "copy_tensor", "merge_tensor", "segments"]

Array = NDArray[Any]

LARGE = 4 * PIECE  # numbers; pieces above this are worked on one at a time
_ONE_LARGE = threading.Lock()
_HALF_EXPONENT = np.uint16(0x7C00)
SIZES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}


def merge_tensor(
    file: WeightFile,
    key: str,
    dtype: str,
    contributions: Sequence[Contribution],
    target: Target,
    offset: int,
    buffers: Buffers,
    *,
    allow: bool,
) -> Moved:
    """Write tensor ``key`` with all its changes, as ``dtype``, at ``offset``.

    Raises ProblemFound where a value becomes infinite or NaN, unless that is allowed.
    """
    shape = file.tensors[key].shape
    columns = math.prod(shape[1:])
    moved = Moved(math.prod(shape) * SIZES[dtype], key, contributions[0].block, len(contributions))
    for place, parts in segments(contributions, shape[0]):
        changes = changes_of(parts, layer_shape(shape, place)) if parts else []
        step = piece_rows(changes, place.stop - place.start, columns, PIECE)
        for start in range(place.start, place.stop, step):
            stop = min(place.stop, start + step)
            large = (stop - start) * columns > LARGE
            if large:
                _ONE_LARGE.acquire()
            try:
                here = start - place.start
                out = None
                if dtype == file.tensors[key].dtype == "F16":
                    span = (start * columns, stop * columns)
                    out = _halves(file, key, span, (here, columns), changes, buffers, moved, allow)
                if out is None:
                    values = read_numbers(file, key, start * columns, stop * columns, buffers)
                    if changes:
                        _change(values.reshape(-1, columns), changes, here, buffers, moved)
                    out = encode_numbers(values, dtype, buffers)
                    check_values(out, dtype, key, moved, allow, [(file, key)])
                target.write_at(out, offset + start * columns * SIZES[dtype])
            finally:
                if large:
                    _ONE_LARGE.release()
    return moved


def _halves(
    file: WeightFile,
    key: str,
    span: tuple[int, int],
    place: tuple[int, int],
    changes: Sequence[Change],
    buffers: Buffers,
    moved: Moved,
    allow: bool,
) -> Array | None:
    """One plain product added to float16 numbers ``span`` of a tensor in a single pass, to the same bits as the long
    way; None where there is more to do, or an odd value is met. ``place``: first row within the change, and columns.
    """
    first, columns = place
    if len(changes) != 1 or not isinstance(changes[0], Product):
        return None
    size = span[1] - span[0]
    delta = buffers.take("delta", size, np.float32)
    scale = changes[0].unscaled(first, first + size // columns, delta.reshape(-1, columns))
    if scale is None:
        return None
    halves = buffers.take("raw", size, np.uint16)
    file.raw_into(key, bytes_of(halves), span[0] * 2)
    added = native.add_f16(halves, delta, scale, halves)
    if added is None or (added.infinite and not allow):
        return None
    moved.weight += added.base
    moved.change += added.change
    moved.small += added.small
    return halves


def _change(weight: Array, changes: Sequence[Change], start: int, buffers: Buffers, moved: Moved) -> None:
    """Add all changes, computed from the weight as it was, and note how far it moved."""
    stop = start + weight.shape[0]
    delta = buffers.take("delta", weight.size, np.float32).reshape(weight.shape)
    rest = changes
    if isinstance(changes[0], Product):
        changes[0].put(start, stop, delta)
        rest = changes[1:]
    else:
        delta.fill(0.0)
    for change in rest:
        change.rows(start, stop, weight, delta)
    flat, flat_delta = weight.reshape(-1), delta.reshape(-1)
    with np.errstate(over="ignore"):  # values that are too large are found where they are written
        moved.weight += float(np.dot(flat, flat))
        moved.change += float(np.dot(flat_delta, flat_delta))
    flat += flat_delta


def check_values(
    out: Array,
    dtype: str,
    key: str,
    moved: Moved,
    allow: bool,
    sources: Sequence[tuple[WeightFile, str]],
) -> None:
    """Raise ProblemFound where a number of the result is infinite or NaN, unless that is allowed; count small ones.

    ``sources``: the files that the tensor is made from, with its name there, to say which has such numbers already.
    """
    if dtype == "F16":
        exponents = out.view(np.uint16) & _HALF_EXPONENT
        finite = not out.size or exponents.max() != _HALF_EXPONENT
        moved.small += int(exponents.size - np.count_nonzero(exponents))
    elif dtype == "BF16":
        exponents = out.view(np.uint16) & np.uint16(0x7F80)
        finite = not out.size or exponents.max() != np.uint16(0x7F80)
    else:
        finite = bool(np.isfinite(np.sum(out)))
        finite = finite or bool(np.isfinite(out).all())
    if not finite and not allow:
        for source, name in sources:
            if not is_finite(source, name):
                raise ProblemFound(
                    f"{source.path}: has NaN or infinite values in {quote(name)[1:-1]} (--allow-nonfinite copies them)"
                )
        hint = ", too large for fp16; give --save-precision fp32 or bf16" if dtype == "F16" else ""
        raise ProblemFound(
            f"{quote(key)[1:-1]}: a value becomes infinite or NaN{hint} (--allow-nonfinite writes it all the same)"
        )


def cast_tensor(
    file: WeightFile, key: str, dtype: str, target: Target, offset: int, buffers: Buffers, *, allow: bool
) -> None:
    """Write a tensor that nothing changes in another type."""
    count = math.prod(file.tensors[key].shape)
    for start in range(0, count, PIECE):
        stop = min(count, start + PIECE)
        values = read_numbers(file, key, start, stop, buffers)
        out = encode_numbers(values, dtype, buffers)
        check_values(out, dtype, key, Moved(0), allow, [(file, key)])
        target.write_at(out, offset + start * SIZES[dtype])


def segments(contributions: Sequence[Contribution], rows: int) -> Iterator[tuple[Place, list[Contribution]]]:
    """The rows of a tensor cut where layers begin and end in it, each with its changes; none for rows in between."""
    by_place: dict[Place, list[Contribution]] = {}
    for contribution in contributions:
        by_place.setdefault(contribution.spot.place, []).append(contribution)
    end = 0
    for place in sorted(by_place, key=lambda place: place.start):
        if place.start > end:
            yield place._replace(start=end, stop=place.start, transposed=False), []
        yield place, by_place[place]
        end = place.stop
    if end < rows:
        yield Place("", "", "", end, rows), []


def layer_shape(shape: tuple[int, ...], place: Place) -> tuple[int, ...]:
    """Shape of the rows of a tensor, as it stands in the checkpoint."""
    return (place.stop - place.start, *shape[1:])
