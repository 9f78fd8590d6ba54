"""Tensors of a result: where each comes from, and how it is made, bit for bit where its type stays."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.errors import InputError, ProblemFound
from lorapipe_engine.files.dtypes import DTYPE_BITS, FLOAT_DTYPES, Encoded, decode, encode
from lorapipe_engine.files.tensorfile import WeightFile, quote

Array = NDArray[Any]
_ITEMS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_PLAIN = "F16"  # what scaled numbers become where no type is asked for


@dataclass(frozen=True)
class Part:
    """A tensor of a file, or rows ``start`` to ``stop`` of it, read as their transpose if ``transposed``.

    ``scale``: the tensor that the stored numbers are multiplied with.
    """

    file: WeightFile
    key: str
    start: int = 0
    stop: int | None = None
    transposed: bool = False
    scale: str | None = None

    @property
    def dtype(self) -> str:
        return self.file.tensors[self.key].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.file.tensors[self.key].shape
        if not shape:
            return shape
        rows = len(range(*slice(self.start, self.stop).indices(shape[0])))
        return (shape[1], rows) if self.transposed else (rows, *shape[1:])


@dataclass(frozen=True)
class Made:
    """A tensor of the result: its parts, one below the other; or ``fixed``. ``layer``: a change of type is for it."""

    parts: tuple[Part, ...]
    shape: tuple[int, ...]
    layer: bool
    fixed: Encoded | None = None

    def dtype(self, precision: str | None) -> str:
        """The number type of the result; ``precision`` is what was asked for, as safetensors spells it."""
        if self.fixed is not None:
            return self.fixed.dtype
        stored = self.parts[0].dtype
        if stored not in FLOAT_DTYPES:
            return stored
        if self.parts[0].scale is not None:
            return precision or _PLAIN
        return precision if precision and self.layer else stored


@dataclass
class Losses:
    """What a change of type did: numbers that became 0."""

    vanished: int = 0
    tensors: set[str] = field(default_factory=set)


def whole(file: WeightFile, key: str, *, layer: bool, scale: str | None = None) -> Made:
    """A tensor that comes from one of a file."""
    return Made((Part(file, key, scale=scale),), file.tensors[key].shape, layer)


def make(name: str, made: Made, dtype: str, losses: Losses, *, allow: bool) -> Encoded:
    """The tensor in a number type. Raises ProblemFound for numbers that the type does not hold, unless allowed."""
    if made.fixed is not None:
        return made.fixed
    stored = {part.dtype for part in made.parts}
    scaled = any(part.scale is not None for part in made.parts)
    if stored == {dtype} and not scaled:
        raw = np.concatenate([_items(part) for part in made.parts])
        return Encoded(dtype, made.shape, np.ascontiguousarray(raw).reshape(-1))
    values = np.concatenate([_numbers(part) for part in made.parts]).reshape(made.shape)
    with np.errstate(over="ignore"):
        encoded = encode(np.ascontiguousarray(values), dtype)
    after = decode(dtype, encoded.data, made.shape)
    if not allow and not np.isfinite(after).all():
        part = made.parts[0]
        if not np.isfinite(values).all():
            raise ProblemFound(
                f"{part.file.path}: has NaN or infinite values in {quote(part.key)[1:-1]} (--allow-nonfinite copies "
                "them)"
            )
        raise ProblemFound(
            f"{quote(name)[1:-1]}: values are too large for {dtype}; give --save-precision fp32 or bf16"
        )
    if vanished := int(np.count_nonzero((after == 0) & (values != 0))):
        losses.vanished += vanished
        losses.tensors.add(name)
    return encoded


def _items(part: Part) -> Array:
    """The stored numbers as whole numbers of their size, at least one-dimensional."""
    info = part.file.tensors[part.key]
    kind = _ITEMS[DTYPE_BITS[info.dtype] // 8]
    array = np.frombuffer(part.file.raw(part.key), kind).reshape(info.shape)
    return _cut(part, array)


def _numbers(part: Part) -> Array:
    values = part.file.read(part.key)
    if part.scale is not None:
        values = values * _fitting(part, part.file.read(part.scale), values.shape)
    return _cut(part, values)


def _cut(part: Part, array: Array) -> Array:
    if not array.ndim:
        return array.reshape(1)
    rows = array[part.start : part.stop]
    return rows.T if part.transposed else rows


def _fitting(part: Part, scale: Array, shape: tuple[int, ...]) -> Array:
    """The scale by number, by row or by block of a matrix, in a shape that multiplies the tensor."""
    if scale.size == 1:
        return scale.reshape(())
    if shape and scale.size == shape[0]:
        return scale.reshape(-1, *([1] * (len(shape) - 1)))
    if scale.ndim == len(shape) == 2 and all(n % m == 0 for n, m in zip(shape, scale.shape, strict=True)):
        return np.repeat(np.repeat(scale, shape[0] // scale.shape[0], 0), shape[1] // scale.shape[1], 1)
    raise InputError(
        f"{part.file.path}: {quote(part.scale)[1:-1]} of shape {scale.shape} does not fit {quote(part.key)[1:-1]}"
    )


def position_ids(count: int) -> Made:
    """The places of a text encoder's tokens, 0, 1, 2, ..., as programs expect them."""
    shape = (1, count)
    return Made((), shape, False, Encoded("I64", shape, np.arange(count, dtype=np.int64)))


def mark() -> Made:
    """An empty tensor, whose name says something of the model."""
    return Made((), (0,), False, Encoded("F32", (0,), np.zeros(0, np.float32)))
