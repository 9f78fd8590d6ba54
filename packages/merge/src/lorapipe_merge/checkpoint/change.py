"""The change of a tensor's rows: module tensors are read once, then cut for one piece of rows after another.

Large layers are never worked on whole: for most algorithms, rows of the change depend on the same rows of the factors
alone. Maths is float32, or float64 for who wants to check.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.delta import Rule, dense_delta, find_rule
from lorapipe_engine.delta.base import STEPS, Module
from lorapipe_engine.networks.read import module_label, read_module
from lorapipe_merge.matching import Contribution

Array = NDArray[Any]
Tensors = Mapping[str, Array]
Number = type[np.floating[Any]]


class Change(Protocol):
    """What is added to a layer. ``step``: rows come in multiples of it; 0 means all at once."""

    step: int

    def rows(self, start: int, stop: int, weight: Array, out: Array) -> None:
        """Add the change of rows ``start`` to ``stop`` to ``out``; ``weight`` are those rows of the base, both
        (rows, columns).
        """
        ...


def changes_of(
    contributions: Sequence[Contribution], shape: tuple[int, ...], dtype: Number = np.float32
) -> list[Change]:
    """The changes of one layer (or one slice of a fused tensor), whose weight or bias has ``shape``.

    Plain factors of all networks are one change, which then comes first. ``dtype`` is that of the maths.
    """
    plain: list[tuple[Array, Array, float]] = []
    rest: list[Change] = []
    for contribution in contributions:
        tensors = read_module(contribution.weights, contribution.module)
        label = module_label(contribution.weights, contribution.module)
        if contribution.spot.place.kind == "bias":
            rest.append(_Bias(contribution, tensors, dtype))
        elif contribution.spot.place.transposed:
            rest.append(_Transposed(contribution, tensors, dtype))
        elif (rule := find_rule(label, tensors)).factors and "dora_scale" not in tensors:
            plain.append(_factors(rule, contribution, tensors, dtype))
        else:
            rest.append(_General(rule, contribution, tensors, shape, dtype))
    return [*([Product(plain, dtype)] if plain else []), *rest]


class Product:
    """Plain factors: Σ s · (up · down).

    Each product is scaled after it is made, as sd-scripts does it, so that results round alike.
    """

    step = 1

    def __init__(self, parts: Sequence[tuple[Array, Array, float]], dtype: Number) -> None:
        self.parts = [
            (np.ascontiguousarray(up), np.ascontiguousarray(down), dtype(s)) for up, down, s in parts
        ]

    def put(self, start: int, stop: int, out: Array) -> None:
        """Write the change of these rows to ``out``, whatever it holds."""
        up, down, scale = self.parts[0]
        np.matmul(up[start:stop], down, out=out)
        out *= scale
        self._add(start, stop, out, self.parts[1:])

    def unscaled(self, start: int, stop: int, out: Array) -> float | None:
        """Write up · down of these rows to ``out`` where there is one such product, and give its scale; else None."""
        if len(self.parts) > 1:
            return None
        up, down, scale = self.parts[0]
        np.matmul(up[start:stop], down, out=out)
        return float(scale)

    def rows(self, start: int, stop: int, weight: Array, out: Array) -> None:
        del weight
        self._add(start, stop, out, self.parts)

    def _add(self, start: int, stop: int, out: Array, parts: Sequence[tuple[Array, Array, Any]]) -> None:
        for up, down, scale in parts:
            product = up[start:stop] @ down
            product *= scale
            out += product


class _General:
    """Any algorithm, through its formula on the rows' part of its tensors."""

    def __init__(
        self,
        rule: Rule,
        contribution: Contribution,
        tensors: Tensors,
        shape: tuple[int, ...],
        dtype: Number,
    ) -> None:
        self.contribution = contribution
        self.dtype = dtype
        self.shape = shape
        self.cut, self.step = _cutter(rule, tensors, shape[0])

    def rows(self, start: int, stop: int, weight: Array, out: Array) -> None:
        delta = dense_delta(
            self.cut(start, stop),
            weight.reshape(stop - start, *self.shape[1:]),
            multiplier=self.contribution.multiplier,
            name=module_label(self.contribution.weights, self.contribution.module),
            dtype=self.dtype,
        ).weight
        if delta is not None:
            out += delta.reshape(out.shape)


class _Transposed:
    """A layer that the checkpoint holds transposed (x @ P instead of x @ W.T)."""

    step = 0

    def __init__(self, contribution: Contribution, tensors: Tensors, dtype: Number) -> None:
        self.contribution = contribution
        self.dtype = dtype
        self.tensors = tensors

    def rows(self, start: int, stop: int, weight: Array, out: Array) -> None:
        del start, stop
        delta = dense_delta(
            self.tensors,
            np.ascontiguousarray(weight.T),
            multiplier=self.contribution.multiplier,
            name=module_label(self.contribution.weights, self.contribution.module),
            dtype=self.dtype,
        ).weight
        if delta is not None:
            out += delta.T


class _Bias:
    """``diff_b`` and ``b_norm``."""

    step = 0

    def __init__(self, contribution: Contribution, tensors: Tensors, dtype: Number) -> None:
        name = "diff_b" if "diff_b" in tensors else "b_norm"
        self.change = tensors[name].astype(dtype).reshape(-1, 1) * dtype(contribution.multiplier)

    def rows(self, start: int, stop: int, weight: Array, out: Array) -> None:
        del weight
        out += self.change[start:stop]


def _factors(
    rule: Rule, contribution: Contribution, tensors: Tensors, dtype: Number
) -> tuple[Array, Array, float]:
    """up (o, r), down (r, n), and what their product is multiplied with."""
    module = Module(
        name=module_label(contribution.weights, contribution.module), tensors=tensors, dtype=dtype
    )
    assert rule.factors is not None
    up, down, scale = rule.factors(module)
    return up, down.reshape(down.shape[0], -1), contribution.multiplier * scale


# -------------------------------------------------------------------------------- cutting


Cut = Callable[[int, int], Tensors]


def _cutter(rule: Rule, tensors: Tensors, rows: int) -> tuple[Cut, int]:
    """How to cut a module's tensors for rows of its layer, and in which steps; step 0: not at all."""
    axis_of, step = rule.row_axes(tensors, rows) if rule.row_axes else (None, 0)
    if axis_of is None:
        return (lambda _start, _stop: tensors), 0
    if "dora_scale" in tensors:
        scale = tensors["dora_scale"]
        if scale.ndim > 1 and scale.shape[0] == 1:  # norms over whole columns
            return (lambda _start, _stop: tensors), 0
        axis_of = {**axis_of, "dora_scale": 0}

    def cut(start: int, stop: int) -> Tensors:
        return {
            suffix: _slice(tensor, axis_of.get(suffix), start // step, stop // step, start, stop)
            for suffix, tensor in tensors.items()
        }

    return cut, step


def _slice(tensor: Array, axis: int | None, first: int, last: int, start: int, stop: int) -> Array:
    if axis is None:
        return tensor
    if axis == STEPS:
        return tensor[first:last]
    return tensor[start:stop] if axis == 0 else tensor[:, start:stop]


def piece_rows(changes: Sequence[Change], rows: int, columns: int, elements: int) -> int:
    """How many rows to work on at once: about ``elements`` numbers, in the changes' steps; all where one asks."""
    if any(change.step == 0 for change in changes):
        return rows
    step = math.lcm(*(change.step for change in changes)) if changes else 1
    return min(rows, max(1, elements // max(1, columns) // step) * step)
