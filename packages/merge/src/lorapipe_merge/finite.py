"""NaN and infinity in networks, found before they are merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.dtypes import FLOAT_DTYPES
from lorapipe_engine.files.tensorfile import WeightFile, quote
from lorapipe_merge.matching import Applied

# The exponent's bits; all ones mean infinity or NaN.
_EXPONENT: dict[str, tuple[Any, int]] = {
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F32": (np.uint32, 0x7F800000),
}
SHOWN = 5


def check_networks(networks: Sequence[Applied], *, allow: bool) -> None:
    """Raise InputError naming the tensors with NaN or infinite values, unless they are allowed."""
    for applied in () if allow else networks:
        bad = [key for key in applied.weights.tensors if not is_finite(applied.weights, key)]
        if bad:
            shown = ", ".join(quote(key)[1:-1] for key in bad[:SHOWN])
            more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
            raise InputError(
                f"{applied.name}: NaN or infinite values in {shown}{more}; --allow-nonfinite merges them all the same"
            )


def is_finite(file: WeightFile, key: str) -> bool:
    """Whether all numbers of a tensor are finite; true for integers."""
    dtype = file.tensors[key].dtype
    if dtype not in FLOAT_DTYPES:
        return True
    if dtype in _EXPONENT:
        kind, exponent = _EXPONENT[dtype]
        bits = np.frombuffer(file.raw(key), kind)
        return not bits.size or int((bits & kind(exponent)).max()) != exponent
    return bool(np.isfinite(file.read(key)).all())
