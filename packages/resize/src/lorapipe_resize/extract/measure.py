"""The change of one layer between two checkpoints, and the floor that rounding puts under it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_resize.extract.layers import PIECE, Tensor, are_equal, not_finite
from lorapipe_resize.extract.pair import Layer

Array = NDArray[Any]

# Mantissa bits and smallest exponent of a normal number.
_TYPES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "F64": (52, -1022),
        "F32": (23, -126),
        "BF16": (7, -126),
        "F16": (10, -14),
        "F8_E5M2": (2, -14),
        "F8_E5M2FNUZ": (2, -15),
        "F8_E4M3": (3, -6),
        "F8_E4M3FNUZ": (3, -7),
    }
)
_WIDE = frozenset({"F32", "F64"})
SAMPLE = (
    1 << 17
)  # numbers that the mean square of a rounding step is taken from: good to a third of a percent


@dataclass(frozen=True)
class Change:
    """tuned - base as a matrix (o, in·k·k), float64 where both files are wider than 16 bits, else float32.

    ``base_norm`` is ‖base‖, ``floor`` the largest singular value that rounding alone would give, ``largest`` the
    largest magnitude of the change.
    """

    matrix: Array
    base_norm: float
    floor: float
    largest: float


def change_of(layer: Layer) -> Change | None:
    """How the layer changed; None where it did not. Raises InputError for NaN and infinite values.

    Both files are read in pieces, so that one matrix is all that is in memory.
    """
    if are_equal(layer.tuned, layer.base):
        return None
    dtype = np.float64 if {layer.tuned.info.dtype, layer.base.info.dtype} <= _WIDE else np.float32
    count = math.prod(layer.size)
    stride = max(1, count // SAMPLE) | 1  # odd, so that no column is favoured
    change = np.empty(count, dtype)
    squares = 0.0
    samples: list[tuple[Array, Array]] = []
    for start in range(0, count, PIECE):
        stop = min(count, start + PIECE)
        tuned, base = layer.tuned.decode(start, stop, dtype), layer.base.decode(start, stop, dtype)
        squares += float(np.dot(base, base))
        first = -start % stride
        samples.append((tuned[first::stride].copy(), base[first::stride].copy()))
        np.subtract(tuned, base, out=change[start:stop])
    largest = float(max(change.max(), -change.min()))
    if not math.isfinite(largest):
        raise not_finite(layer.tuned, layer.base)
    if not largest:
        return None
    numbers = np.arange(0, count, stride)
    steps = sum(
        mean_step(np.concatenate(values), numbers // layer.size[1], tensor)
        for values, tensor in zip(zip(*samples, strict=True), (layer.tuned, layer.base), strict=True)
    )
    return Change(change.reshape(layer.size), math.sqrt(squares), floor_of(steps, layer.size), largest)


def floor_of(steps: float, shape: tuple[int, ...]) -> float:
    """The largest singular value of rounding noise on a matrix (o, n), ``steps`` being the mean squared step of both
    files: √(steps / 12) · (√o + √n).

    Rounding to steps of size s adds noise of variance s²/12; the norm of a random matrix of deviation d tends to
    d (√o + √n) (Geman 1980).
    """
    rows, columns = shape
    return math.sqrt(steps / 12) * (math.sqrt(rows) + math.sqrt(columns))


def mean_step(values: Array, rows: Array, tensor: Tensor) -> float:
    """The mean of the squared distance between neighbouring numbers of the tensor's type, at ``values``, which lie in
    ``rows``.
    """
    bits, least = _TYPES.get(tensor.info.dtype, _TYPES["F32"])
    scale = tensor.scale()
    factors: Array | float = 1.0
    if scale is not None:
        factors = np.abs(scale[rows] if scale.size > 1 else scale)
    stored = np.abs(values.astype(np.float64)) / np.where(np.equal(factors, 0.0), 1.0, factors)
    _, exponents = np.frexp(np.maximum(stored, math.ldexp(1.0, least)))  # below that, steps stay the same
    steps = np.ldexp(1.0, exponents - 1 - bits) * factors
    return float(np.mean(np.square(steps)))
