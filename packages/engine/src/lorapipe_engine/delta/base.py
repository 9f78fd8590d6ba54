"""What every rule of :mod:`lorapipe_engine.delta` works on: one module's tensors, and errors that name it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.errors import InputError

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Module:
    """One module of a network file.

    ``tensors`` maps suffixes ("lora_up.weight", "hada_w1_a", "alpha", ...) to arrays; ``weight`` is the base
    weight W, (out, in) or (out, in, k, k) or (c,), where it is known. All maths is done in ``dtype``.
    """

    name: str
    tensors: Mapping[str, Array]
    weight: Array | None = None
    dtype: type[np.floating[Any]] = np.float64

    def has(self, suffix: str) -> bool:
        return suffix in self.tensors

    def need(self, suffix: str, *dims: int) -> Array:
        """The tensor of that suffix in ``dtype``, with one of the given numbers of dimensions.

        Raises InputError if it is missing, empty, or has another number of dimensions.
        """
        if suffix not in self.tensors:
            found = ", ".join(sorted(self.tensors))
            raise self.error(f"{suffix} is missing (the module has {found})")
        tensor = self.tensors[suffix]
        if dims and tensor.ndim not in dims:
            wanted = " or ".join(str(d) for d in dims)
            raise self.error(f"{suffix} has shape {tensor.shape}, expected {wanted} dimensions")
        if not tensor.size:
            raise self.error(f"{suffix} is empty: its shape is {tensor.shape}")
        return tensor.astype(self.dtype, copy=False)

    def base(self, *dims: int) -> Array:
        """The base weight in ``dtype``. Raises InputError where it was not given."""
        if self.weight is None:
            raise self.error("its change depends on the base weight: give the base model too")
        if dims and self.weight.ndim not in dims:
            raise self.error(f"does not fit a base weight of shape {self.weight.shape}")
        return self.weight.astype(self.dtype, copy=False)

    def number(self, suffix: str) -> float | None:
        """A tensor of one element as a float, None where it is absent. InputError for more elements."""
        if suffix not in self.tensors:
            return None
        tensor = self.tensors[suffix]
        if tensor.size != 1:
            raise self.error(f"{suffix} has shape {tensor.shape}, expected one number")
        value = float(tensor.reshape(()))
        if not math.isfinite(value):
            raise self.error(f"{suffix} is {value}")
        return value

    def scale(self, rank: int) -> float:
        """alpha / rank; 1 where the file has no alpha, as every reader takes it."""
        alpha = self.number("alpha")
        return 1.0 if alpha is None else alpha / rank

    def error(self, text: str) -> InputError:
        return InputError(f"module {self.name}: {text}")

    def product(self, left: Array, right: Array, names: str) -> Array:
        """``left @ right`` of two matrices, InputError where the inner sizes differ."""
        if left.shape[1] != right.shape[0]:
            raise self.error(f"{names} do not fit each other: {left.shape} and {right.shape}")
        result: Array = left @ right
        return result


@dataclass(frozen=True)
class Rule:
    """What one algorithm does to a weight.

    ``name`` is that of the table of algorithms. ``change`` gives W' - W at a multiplier, in the weight's
    shape or flattened to (out, in·k·k); None where only the bias changes.
    """

    name: str
    change: Callable[[Module, float], Array | None]
    needs_base: bool = False


def flat(tensor: Array) -> Array:
    """(o, ...) as a matrix (o, n)."""
    return tensor.reshape(tensor.shape[0], -1)
