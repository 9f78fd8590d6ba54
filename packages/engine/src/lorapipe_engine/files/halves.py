"""Fast conversion between float32 and the 16-bit types, bit for bit what numpy's and torch's own give.

numpy converts float16 element by element. The processor's own instructions take a twentieth of the time, where the
compiled part is there (see native); else whole-array integer operations on blocks that stay in the cache take half.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine import native

Array = NDArray[Any]

BLOCK = 1 << 18  # elements: 1 MiB of float32; with smaller ones threads wait for the interpreter more
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_LARGEST = 0x477FF000  # float32 bits of 65520, which rounds to infinity in float16
_SMALLEST = np.uint32(0x38800000)  # 2^-14: below, float16 is subnormal
# Moves the exponent's bias from 127 to 15 and rounds half up; the bit above the cut makes that half to even.
_ROUND_AND_SHIFT = np.uint32((0xFFF - (112 << 23)) & 0xFFFFFFFF)
_F16_BITS = np.int32(-0x70002000)  # sign, exponent and mantissa of a float16 moved up by 13


def decode_f16(halves: Array, out: Array | None = None) -> Array:
    """float16 (n,) -> float32 (n,), exact, NaN and infinity too; into ``out`` where it is given."""
    source = np.ascontiguousarray(halves).reshape(-1).view(np.int16)
    result = np.empty(source.size, np.float32) if out is None else out
    if native.decode_f16(source, result):
        return result
    for start in range(0, source.size, BLOCK):
        piece = source[start : start + BLOCK]
        values = result[start : start + BLOCK]
        bits = values.view(np.int32)
        bits[:] = piece
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, _F16_BITS, out=bits)
        np.multiply(values, np.float32(2.0**112), out=values)
        # An exponent of all ones, which means infinity or NaN, becomes 65536 or more: more than any float16.
        if values.size and (values.max() >= 65536 or values.min() <= -65536):
            values[:] = piece.view(np.float16)
    return result


def encode_f16(values: Array, out: Array | None = None) -> Array:
    """float32 (n,) -> float16 (n,), rounded to the nearest, ties to even; too large values become infinite."""
    source = np.ascontiguousarray(values, np.float32).reshape(-1)
    result = np.empty(source.size, np.uint16) if out is None else out.view(np.uint16)
    if native.encode_f16(source, result):
        return result.view(np.float16)
    for start in range(0, source.size, BLOCK):
        _encode_block(source[start : start + BLOCK], result[start : start + BLOCK])
    return result.view(np.float16)


def _encode_block(values: Array, out: Array) -> None:
    bits = values.view(np.uint32)
    work = bits & _MAGNITUDE
    if work.max() >= _LARGEST:
        with np.errstate(over="ignore"):
            out[:] = values.astype(np.float16).view(np.uint16)
        return
    small = np.flatnonzero(work < _SMALLEST)
    odd = bits >> np.uint32(13)
    odd &= np.uint32(1)
    work += odd
    work += _ROUND_AND_SHIFT
    work >>= np.uint32(13)
    np.right_shift(bits, np.uint32(16), out=odd)
    odd &= np.uint32(0x8000)
    work |= odd
    out[:] = work
    if small.size:
        out[small] = values[small].astype(np.float16).view(np.uint16)


def encode_bf16(values: Array, out: Array | None = None) -> Array:
    """float32 (n,) -> bfloat16 as uint16 (n,), rounded to the nearest, ties to even; NaN stays NaN."""
    source = np.ascontiguousarray(values, np.float32).reshape(-1)
    result = np.empty(source.size, np.uint16) if out is None else out
    for start in range(0, source.size, BLOCK):
        piece = source[start : start + BLOCK]
        bits = piece.view(np.uint32)
        work = bits >> np.uint32(16)
        work &= np.uint32(1)
        work += np.uint32(0x7FFF)
        work += bits
        work >>= np.uint32(16)
        result[start : start + BLOCK] = work
        # Rounding up could turn a NaN into infinity: keep its upper bits and make it quiet instead.
        if np.isnan(piece.max(initial=-np.inf)):
            wrong = np.flatnonzero(np.isnan(piece))
            result[start + wrong] = (bits[wrong] >> np.uint32(16)) | np.uint32(0x40)
    return result
