"""The engine's compiled part: float16 by the processor's own instructions, converted, and added to.

``halves.so`` is made at installation where there is a C compiler (hatch_build.py). Whatever is missing, the functions
here say that they did nothing, and numpy does the work.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

Array = NDArray[Any]

LIBRARY = Path(__file__).with_name("halves.so")


def decode_f16(halves: Array, out: Array) -> bool:
    """float16 bits, uint16 (n,), -> float32 (n,), both contiguous. False if not done: no library, or a NaN met."""
    library = _library()
    if library is None:
        return False
    return not library.lorapipe_decode_f16(halves.ctypes.data, out.ctypes.data, halves.size)


def encode_f16(values: Array, out: Array) -> bool:
    """float32 (n,) -> float16 bits, uint16 (n,), both contiguous. False if not done: no library, or a NaN met."""
    library = _library()
    if library is None:
        return False
    return not library.lorapipe_encode_f16(values.ctypes.data, out.ctypes.data, values.size)


class Added(NamedTuple):
    """What :func:`add_f16` met: squared norms of the base and of the change; results that are infinite; results that
    are 0 or subnormal.
    """

    base: float
    change: float
    infinite: int
    small: int


def add_f16(base: Array, change: Array, scale: float, out: Array) -> Added | None:
    """``out`` = half(``base`` + ``scale`` · ``change``), rounded after each operation, in one pass.

    ``base`` and ``out`` are float16 bits, uint16 (n,), ``change`` is float32 (n,), all contiguous; ``base`` and
    ``out`` may be the same. None if not done: no library, or a NaN met.
    """
    library = _library()
    if library is None:
        return None
    sums, counts = (ctypes.c_double * 2)(), (ctypes.c_int64 * 2)()
    pointers = base.ctypes.data, change.ctypes.data
    if library.lorapipe_add_f16(*pointers, scale, out.ctypes.data, base.size, sums, counts):
        return None
    return Added(sums[0], sums[1], counts[0], counts[1])


def is_there() -> bool:
    """Whether the library was made and this processor can run it."""
    return _library() is not None


@cache
def _library() -> Any:
    """The loaded library; None where there is none, or LORAPIPE_NATIVE=0 says not to use it."""
    if os.environ.get("LORAPIPE_NATIVE") == "0":
        return None
    try:
        library = ctypes.CDLL(str(LIBRARY))
        for name in ("lorapipe_decode_f16", "lorapipe_encode_f16"):
            function = getattr(library, name)
            function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
            function.restype = ctypes.c_int
        address, size = ctypes.c_void_p, ctypes.c_size_t
        library.lorapipe_add_f16.argtypes = (
            address,
            address,
            ctypes.c_float,
            address,
            size,
            address,
            address,
        )
        library.lorapipe_add_f16.restype = ctypes.c_int
        supported = bool(library.lorapipe_supported())
    except (OSError, AttributeError):  # not made, made for another system, or of another version
        return None
    return library if supported else None
