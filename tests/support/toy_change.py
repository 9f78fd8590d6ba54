"""A toy algorithm, first file: its change without torch, s · left · diag(gain) · right.

``toy_left`` (out, r), ``toy_gain`` (r,), ``toy_right`` (r, in) or (r, in, k, k); s = alpha / r.
"""

from __future__ import annotations

import math

from lorapipe_engine.delta.base import Array, Module, Rule, Shapes, flat
from lorapipe_engine.delta.spectrum import Decompose, ModuleSpectrum
from lorapipe_engine.networks.algorithms import Algorithm
from lorapipe_engine.networks.factors import spectrum


def _parts(module: Module) -> tuple[Array, Array, float]:
    left, gain, right = module.need("toy_left", 2), module.need("toy_gain", 1), module.need("toy_right", 2, 4)
    if not left.shape[1] == gain.shape[0] == right.shape[0]:
        raise module.error(f"toy_left {left.shape}, toy_gain and toy_right {right.shape} do not fit")
    return left * gain, right, module.scale(len(gain))


def _change(module: Module, multiplier: float) -> Array:
    left, right, scale = _parts(module)
    result: Array = (left * (multiplier * scale) @ flat(right)).reshape(left.shape[0], *right.shape[1:])
    return result


def _spectrum(module: Module, _vectors: int | None, _decompose: Decompose) -> ModuleSpectrum:
    left, right, scale = _parts(module)
    matrix, rank = flat(right), right.shape[0]
    limit = min(left.shape[0], rank, matrix.shape[1])
    return ModuleSpectrum(
        algorithm="toy",
        spectrum=spectrum(left, matrix),
        scale=scale,
        rank=rank,
        limit=limit,
        kernel=right.shape[2:],
    )


def _made_shape(shapes: Shapes) -> tuple[int, int] | None:
    left, right = shapes.get("toy_left"), shapes.get("toy_right")
    return (left[0], math.prod(right[1:])) if left and right else None


TOY = Rule(
    name="toy",
    change=_change,
    spectrum=_spectrum,
    row_axes=lambda _tensors, _rows: ({"toy_left": 0}, 1),
    made_shape=_made_shape,
    zeros=(("toy_left", "toy_gain", "toy_right"),),
    uses_alpha=lambda _suffixes: True,
    rank_axes={"toy_left": 1, "toy_gain": 0, "toy_right": 0},
    pairs=(("toy_left", "toy_right"), ("toy_left", "toy_gain")),
)

# The row.
ROW = Algorithm(
    name="toy",
    title="Toy",
    marks=frozenset({"toy_left", "toy_gain", "toy_right"}),
    ranks=("toy_gain",),
    rule="support.toy_change:TOY",
    adapter="support.toy_training:Toy",
    modules=("networks.toy",),
)
