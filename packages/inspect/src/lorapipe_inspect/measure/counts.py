"""Counts zeros, subnormals, NaN and infinities of every tensor of a file on the bits, without decoding.

Shifted left by one, the sign falls out and a float's bits are ordered like its magnitude (IEEE 754 and its
relatives): zero is 0, subnormals lie below the smallest exponent, infinity is all ones in the exponent, NaN above it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from lorapipe_engine.files.dtypes import DTYPE_BITS, FLOAT_DTYPES, Array
from lorapipe_engine.files.tensorfile import TensorFile, TensorInfo, WeightFile

# Bits of the mantissa; complex numbers are two floats.
_MANTISSA = {"F16": 10, "BF16": 7, "F32": 23, "F64": 52, "C64": 23}
_PARTS = {"C64": 2}
# Exponent bits and mantissa bits; "ieee": with infinities, "fn": NaN is all ones and there is no infinity, "fnuz":
# the pattern of minus zero is the only NaN, "scale": exponents alone (OCP 8-bit floats, arXiv:2209.05433, 2206.02915).
_SMALL = {
    "F8_E5M2": (5, 2, "ieee"),
    "F8_E4M3": (4, 3, "fn"),
    "F8_E4M3FNUZ": (4, 3, "fnuz"),
    "F8_E5M2FNUZ": (5, 2, "fnuz"),
    "F8_E8M0": (8, 0, "scale"),
}
COUNTED = frozenset({*_MANTISSA, *_SMALL})
ZERO, SUBNORMAL, INF, NAN = range(4)
KINDS = ("zero", "subnormal", "inf", "nan")
# Bytes that are looked at together: they stay in the cache from step to step.
BLOCK = 1 << 19
# sd-scripts' tool casts to fp32 before it looks for zeros: half of its smallest subnormal becomes 0.
_ZERO_AS_FLOAT32 = 2.0**-150
MAX_PLACES = 64


@dataclass(frozen=True)
class Place:
    """A value that is not finite: ``index`` is its place in the tensor."""

    tensor: str
    index: tuple[int, ...]
    value: str


@dataclass(frozen=True)
class TensorCounts:
    """What is in a tensor of ``size`` float elements (complex ones count twice).

    ``zero_in_float32`` also counts those that become zero in fp32; only float64 has such.
    """

    size: int
    zero: int = 0
    subnormal: int = 0
    inf: int = 0
    nan: int = 0
    zero_in_float32: int = 0

    @property
    def all_zero(self) -> bool:
        return self.size > 0 and self.zero == self.size


@dataclass(frozen=True)
class FileCounts:
    """Counts by tensor, of those with a float type that is counted here; the places of the first values that are not
    finite, at most ``MAX_PLACES``. ``skipped``: tensors of packed float types of 4 and 6 bits.
    """

    tensors: dict[str, TensorCounts]
    places: tuple[Place, ...]
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class _Block:
    """Neighbouring tensors, or a piece of one: ``names`` with their first element in the block, in order, and where in
    the first tensor the block begins.
    """

    dtype: str
    start: int
    stop: int
    names: list[str]
    firsts: list[int]
    offset: int = 0


def count_file(file: WeightFile) -> FileCounts:
    """Count a whole file; memory is a few times ``BLOCK`` whatever the file's size.

    Raises InputError if the file cannot be read any more.
    """
    wanted = {name: info for name, info in file.tensors.items() if info.dtype in COUNTED}
    numbers = {name: number for number, name in enumerate(wanted)}
    table = np.zeros((len(KINDS) + 1, len(wanted)), dtype=np.int64)  # the last row: zero as float32
    places: list[Place] = []
    for block in _blocks(file, wanted):
        first = numbers[block.names[0]]
        counts, odd = _count_block(block, _read(file, block))
        table[:, first : first + len(block.names)] += counts
        if odd is not None and len(places) < MAX_PLACES:
            places += _places(block, odd, wanted)[: MAX_PLACES - len(places)]
    skipped = [
        name for name, info in file.tensors.items() if info.dtype in FLOAT_DTYPES and name not in wanted
    ]
    rows = zip(wanted.items(), table.T.tolist(), strict=True)
    by_name = {name: TensorCounts(_elements(info), *row) for (name, info), row in rows}
    return FileCounts(by_name, tuple(places), tuple(skipped))


def _elements(info: TensorInfo) -> int:
    return math.prod(info.shape) * _PARTS.get(info.dtype, 1)


def _blocks(file: WeightFile, wanted: dict[str, TensorInfo]) -> Iterator[_Block]:
    """The tensors in the order of the file, in blocks of one type. A pickle's tensors stay apart: they do not lie in a
    row.
    """
    joinable = isinstance(file, TensorFile)
    names: list[str] = []
    for name, info in wanted.items():
        if names and not (joinable and _goes_on(wanted, names, info)):
            yield from _cut(wanted, names)
            names = []
        names.append(name)
    if names:
        yield from _cut(wanted, names)


def _goes_on(wanted: dict[str, TensorInfo], names: Sequence[str], info: TensorInfo) -> bool:
    first, last = wanted[names[0]], wanted[names[-1]]
    return last.dtype == info.dtype and last.end == info.start and info.end - first.start <= BLOCK


def _cut(wanted: dict[str, TensorInfo], names: list[str]) -> Iterator[_Block]:
    first, last = wanted[names[0]], wanted[names[-1]]
    width = _width(first.dtype)
    firsts = [(wanted[name].start - first.start) // width for name in names]
    if last.end - first.start <= BLOCK:
        yield _Block(first.dtype, first.start, last.end, names, firsts)
        return
    for start in range(first.start, first.end, BLOCK):
        offset = (start - first.start) // width
        yield _Block(first.dtype, start, min(first.end, start + BLOCK), names, firsts, offset)


def _width(dtype: str) -> int:
    return DTYPE_BITS[dtype] // 8 // _PARTS.get(dtype, 1)


def _read(file: WeightFile, block: _Block) -> memoryview:
    if isinstance(file, TensorFile):
        return file.data(block.start, block.stop)
    start = file.tensors[block.names[0]].start
    return file.raw(block.names[0], block.start - start, block.stop - start)


def _count_block(block: _Block, data: memoryview) -> tuple[Array, Array | None]:
    """Counts (5, tensors), and the elements that are not finite: rows of index and kind."""
    odd, kinds = _odd_elements(block.dtype, data)
    borders = np.asarray([*block.firsts, len(data) // _width(block.dtype)])
    counts = np.zeros((len(KINDS) + 1, len(block.names)), dtype=np.int64)
    if not odd.size:
        return counts, None
    present = np.flatnonzero(np.bincount(kinds, minlength=len(KINDS)))
    for kind in present:
        chosen = odd if len(present) == 1 else odd[kinds == kind]
        counts[kind] = np.diff(np.searchsorted(chosen, borders))
    counts[-1] = counts[ZERO]
    if block.dtype == "F64":
        tiny = np.flatnonzero(np.abs(np.frombuffer(data, "<f8")) <= _ZERO_AS_FLOAT32)
        counts[-1] = np.diff(np.searchsorted(tiny, borders))
    infinite = kinds >= INF
    return counts, np.stack([odd[infinite], kinds[infinite]]) if infinite.any() else None


def _odd_elements(dtype: str, data: memoryview) -> tuple[Array, Array]:
    """Indices, ascending, and kinds of all elements but plain numbers."""
    if dtype in _SMALL:
        classes = _byte_classes(dtype)[np.frombuffer(data, np.uint8)]
        odd = np.flatnonzero(classes < len(KINDS))
        return odd, classes[odd]
    width = _width(dtype)
    bits = np.frombuffer(data, f"<u{width}")
    kind = bits.dtype.type
    lowest = kind(2 << _MANTISSA[dtype])  # of all normal numbers
    infinity = kind((1 << width * 8) - int(lowest))
    magnitude = np.left_shift(bits, kind(1))
    # Zero and subnormals wrap around to the upper end.
    odd = np.flatnonzero(np.subtract(magnitude, lowest) >= infinity - lowest)
    values = magnitude[odd]
    kinds = np.full(values.shape, SUBNORMAL, dtype=np.uint8)
    kinds[values == 0] = ZERO
    kinds[values == infinity] = INF
    kinds[values > infinity] = NAN
    return odd, kinds


@cache
def _byte_classes(dtype: str) -> Array:
    """The kind of each of the 256 patterns of an 8-bit type; ``len(KINDS)`` for plain numbers."""
    exponent_bits, mantissa_bits, style = _SMALL[dtype]
    classes = np.full(256, len(KINDS), dtype=np.uint8)
    if style == "scale":  # 2 to the power of -127 to 127, no zero
        classes[255] = NAN
        return classes
    for byte in range(256):
        magnitude = byte & 0x7F
        if magnitude < 1 << mantissa_bits:
            classes[byte] = SUBNORMAL if magnitude else ZERO
        if style == "ieee" and magnitude >= (2**exponent_bits - 1) << mantissa_bits:
            classes[byte] = NAN if magnitude & (2**mantissa_bits - 1) else INF
        if style == "fn" and magnitude == 0x7F:
            classes[byte] = NAN
    if style == "fnuz":
        classes[0x80] = NAN
    return classes


def _places(block: _Block, odd: Array, wanted: dict[str, TensorInfo]) -> list[Place]:
    places = []
    indices, kinds = odd[:, :MAX_PLACES]
    owners = np.searchsorted(block.firsts, indices, side="right") - 1
    for index, kind, owner in zip(indices.tolist(), kinds.tolist(), owners.tolist(), strict=True):
        name = block.names[owner]
        info = wanted[name]
        flat = (index - block.firsts[owner] + block.offset) // _PARTS.get(info.dtype, 1)
        place = tuple(int(step) for step in np.unravel_index(flat, info.shape)) if info.shape else ()
        places.append(Place(name, place, "NaN" if kind == NAN else "infinity"))
    return places
