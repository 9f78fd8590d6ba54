"""What every rule of :mod:`lorapipe_engine.delta` works on: one module's tensors, and errors that name it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.delta.spectrum import Decompose, ModuleSpectrum
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
            present = ", ".join(sorted(self.tensors))
            raise self.error(f"{suffix} is missing (the module has {present})")
        tensor = self.tensors[suffix]
        if dims and tensor.ndim not in dims:
            wanted = " or ".join(str(d) for d in dims)
            many = "" if dims == (1,) else "s"
            raise self.error(f"{suffix} has shape {tensor.shape}, expected {wanted} dimension{many}")
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


Shapes = Mapping[str, tuple[int, ...]]
STEPS = -1  # in place of an axis: the tensor's first axis counts steps of rows, not rows


def never(_suffixes: Collection[str]) -> bool:
    """The answer of rules that have no use for alpha."""
    return False


@dataclass(frozen=True, kw_only=True, eq=False)
class Rule:
    """What one algorithm does to a weight, and what tools on files have to know of it.

    ``change`` gives W' - W at a multiplier, in the weight's shape or flattened to (out, in·k·k); None where only the
    bias changes. All else is optional; a tool that needs what a rule lacks takes the general way or says so.

    ``factors``: up (out, r), down (r, in, ...) and the number that their product is multiplied with, where the file
    holds the change as plain factors. ``spectrum``: the exact spectrum of a change that is a matrix of its own, from
    the module, the number of singular vectors wanted (None: all) and a dense SVD.

    ``row_axes``: from a module's tensors and the rows of its layer, the axis of each tensor that goes by these rows
    (STEPS where it counts steps of them) and the step; None where rows cannot be worked on apart. ``made_shape``: rows
    and columns of the change, from the shapes of the tensors; None where they do not tell.

    ``zeros``: the change is zero if every group that is there has a tensor that is all zero. ``uses_alpha``: whether
    an alpha of 0 makes the change zero, for a module with these suffixes. ``rank_axes``: the axis of each tensor that
    goes by the ranks. ``pairs``: tensors that need each other. ``needs``: of each group one has to be there. ``fits``:
    whether tensors of these shapes, of which none is missing, can be multiplied.
    """

    name: str
    change: Callable[[Module, float], Array | None]
    needs_base: bool = False
    factors: Callable[[Module], tuple[Array, Array, float]] | None = None
    spectrum: Callable[[Module, int | None, Decompose], ModuleSpectrum] | None = None
    row_axes: Callable[[Mapping[str, Array], int], tuple[Mapping[str, int] | None, int]] | None = None
    made_shape: Callable[[Shapes], tuple[int, int] | None] | None = None
    zeros: tuple[tuple[str, ...], ...] = ()
    uses_alpha: Callable[[Collection[str]], bool] = never
    rank_axes: Mapping[str, int] = field(default_factory=dict)
    pairs: tuple[tuple[str, str], ...] = ()
    needs: tuple[tuple[str, ...], ...] = ()
    fits: Callable[[Shapes], bool] | None = None


def flat(tensor: Array) -> Array:
    """(o, ...) as a matrix (o, n)."""
    return tensor.reshape(tensor.shape[0], -1)
