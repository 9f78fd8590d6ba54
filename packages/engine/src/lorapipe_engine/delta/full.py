"""Whole differences: ``diff`` / ``diff_b`` of a layer, ``w_norm`` / ``b_norm`` of a norm (LyCORIS full,
train_norm).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

from lorapipe_engine.delta.base import Array, Module, Rule, Shapes, flat
from lorapipe_engine.delta.spectrum import Decompose, ModuleSpectrum

# Tensors that are changes themselves, and what they change.
CHANGES: Mapping[str, str] = MappingProxyType(
    {"diff": "weight", "w_norm": "weight", "diff_b": "bias", "b_norm": "bias"}
)
BIAS_SUFFIXES = ("diff_b", "b_norm")


def bias_change(module: Module, multiplier: float) -> Array | None:
    """The change of the bias, (out,); None for modules that leave it alone. Any algorithm may carry
    ``diff_b``.
    """
    for suffix in BIAS_SUFFIXES:
        if module.has(suffix):
            result: Array = module.need(suffix, 1) * multiplier
            return result
    return None


def _weight_change(suffix: str, module: Module, multiplier: float) -> Array | None:
    if not module.has(suffix):
        return None
    result: Array = module.need(suffix) * multiplier
    return result


def _full(module: Module, multiplier: float) -> Array | None:
    return _weight_change("diff", module, multiplier)


def _norm(module: Module, multiplier: float) -> Array | None:
    return _weight_change("w_norm", module, multiplier)


def _spectrum(module: Module, _vectors: int | None, decompose: Decompose) -> ModuleSpectrum:
    diff = module.need("diff", 2, 4)
    matrix = flat(diff)
    smaller = min(matrix.shape)
    return ModuleSpectrum(
        algorithm="full",
        spectrum=decompose(matrix),
        scale=1.0,
        rank=smaller,
        limit=smaller,
        kernel=diff.shape[2:],
    )


def _made_shape(shapes: Shapes) -> tuple[int, int] | None:
    shape = shapes.get("diff")
    return (shape[0], math.prod(shape[1:])) if shape else None


FULL = Rule(
    name="full",
    change=_full,
    spectrum=_spectrum,
    row_axes=lambda _tensors, _rows: ({"diff": 0, "diff_b": 0}, 1),
    made_shape=_made_shape,
    zeros=(("diff",),),
)
NORM = Rule(name="norm", change=_norm, zeros=(("w_norm",), ("b_norm",)))
