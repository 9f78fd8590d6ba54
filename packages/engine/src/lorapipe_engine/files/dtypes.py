"""Number types of weight files: sizes, exact decoding to numpy, and encoding."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.halves import decode_f16, encode_bf16, encode_f16

Array = NDArray[Any]
Data = bytes | bytearray | memoryview | Array

# Bits of an element, in the order in which safetensors files sort their tensors, last first.
DTYPE_BITS: Mapping[str, int] = MappingProxyType(
    {
        "BOOL": 8,
        "F4": 4,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "U8": 8,
        "I8": 8,
        "F8_E5M2": 8,
        "F8_E4M3": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "I16": 16,
        "U16": 16,
        "F16": 16,
        "BF16": 16,
        "I32": 32,
        "U32": 32,
        "F32": 32,
        "C64": 64,
        "F64": 64,
        "I64": 64,
        "U64": 64,
    }
)
FLOAT_DTYPES = frozenset(name for name in DTYPE_BITS if name.startswith(("F", "BF")))

_NUMPY = {
    "U8": "<u1",
    "I8": "<i1",
    "I16": "<i2",
    "U16": "<u2",
    "F16": "<f2",
    "I32": "<i4",
    "U32": "<u4",
    "F32": "<f4",
    "C64": "<c8",
    "F64": "<f8",
    "I64": "<i8",
    "U64": "<u8",
}
_NAMES = {np.dtype(code): name for name, code in _NUMPY.items()}
# Exponent bits, mantissa bits, exponent bias; "fn": all ones is NaN and there is no infinity, "fnuz": the
# pattern of minus zero is the only NaN (arXiv:2209.05433, arXiv:2206.02915).
_SMALL_FLOATS = {
    "F8_E4M3": (4, 3, 7, "fn"),
    "F8_E4M3FNUZ": (4, 3, 8, "fnuz"),
    "F8_E5M2FNUZ": (5, 2, 16, "fnuz"),
}


@dataclass(frozen=True)
class Encoded:
    """A tensor as bytes in a file's own number type, for types that numpy lacks. Little-endian, row-major."""

    dtype: str
    shape: tuple[int, ...]
    data: Data


def byte_count(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Bytes of a tensor; None where packed elements do not fill bytes. KeyError for an unknown dtype."""
    bits = DTYPE_BITS[dtype] * math.prod(shape)
    return bits // 8 if bits % 8 == 0 else None


def decode(dtype: str, data: Data, shape: tuple[int, ...]) -> Array:
    """Bytes of a tensor -> array of ``shape``, never rounded.

    Float types of up to 32 bits give float32, F64 float64, integers and booleans themselves. Arrays of F32
    and of integers look at ``data`` itself. Raises InputError for packed types of 4 and 6 bits.
    """
    if dtype == "BF16":
        wide = np.frombuffer(data, "<u2").astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32).reshape(shape)
    if dtype == "F8_E5M2":  # the upper half of an F16
        half = np.frombuffer(data, np.uint8).astype(np.uint16)
        half <<= 8
        return half.view(np.float16).astype(np.float32).reshape(shape)
    if dtype == "F8_E8M0" or dtype in _SMALL_FLOATS:
        numbers: Array = _byte_table(dtype)[np.frombuffer(data, np.uint8)]
        return numbers.reshape(shape)
    if dtype == "BOOL":
        return np.frombuffer(data, np.uint8).astype(np.bool_).reshape(shape)
    if dtype not in _NUMPY:
        raise InputError(f"tensors of type {dtype} cannot be decoded here")
    array = np.frombuffer(data, _NUMPY[dtype]).reshape(shape)
    if dtype == "F16":
        return decode_f16(array).reshape(shape)
    native: Array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return native


def encode(array: Array, dtype: str) -> Encoded:
    """An array in one of the types "F64", "F32", "F16", "BF16", rounded to the nearest, ties to even.

    Values too large become infinite; whoever must not lose them looks before. Raises ValueError for other
    types.
    """
    source = np.asarray(array)
    if dtype == "BF16":
        return Encoded(dtype, source.shape, encode_bf16(source.astype(np.float32)).astype("<u2", copy=False))
    if dtype == "F16" and source.dtype == np.float32:
        return Encoded(dtype, source.shape, encode_f16(source).astype("<f2", copy=False))
    if dtype not in ("F64", "F32", "F16"):
        raise ValueError(f"cannot encode to {dtype}")
    with np.errstate(over="ignore"):
        return Encoded(dtype, source.shape, source.astype(_NUMPY[dtype], order="C"))


def as_encoded(array: Array) -> Encoded:
    """An array in its own numpy type. Raises ValueError for a type that files do not have."""
    source = np.asarray(array)
    if source.dtype == np.bool_:
        return Encoded("BOOL", source.shape, source.astype(np.uint8, order="C"))
    little = source.dtype.newbyteorder("<")
    if little not in _NAMES:
        raise ValueError(f"weight files cannot hold arrays of type {source.dtype}")
    return Encoded(_NAMES[little], source.shape, source.astype(little, order="C", copy=False))


@cache
def _byte_table(dtype: str) -> Array:
    """The value of each of the 256 bytes, float32."""
    codes = np.arange(256)
    if dtype == "F8_E8M0":  # powers of two alone (OCP microscaling formats 1.0)
        table = np.ldexp(1.0, codes - 127)
        table[255] = np.nan
        return table.astype(np.float32)
    exponent_bits, mantissa_bits, bias, kind = _SMALL_FLOATS[dtype]
    sign = np.where(codes >= 128, -1.0, 1.0)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    fraction = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    # Exponent 0 marks subnormal numbers, whose leading digit is 0.
    scale = np.maximum(exponent, 1) - bias
    table = sign * np.ldexp(fraction + (exponent > 0), scale)
    table[[0x80] if kind == "fnuz" else [0x7F, 0xFF]] = np.nan
    result: Array = table.astype(np.float32)
    return result
