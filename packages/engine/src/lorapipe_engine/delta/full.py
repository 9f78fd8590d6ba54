"""Whole differences: ``diff`` / ``diff_b`` of a layer, ``w_norm`` / ``b_norm`` of a norm (LyCORIS full,
train_norm).
"""

from __future__ import annotations

from lorapipe_engine.delta.base import Array, Module, Rule

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


FULL = Rule("full", _full)
NORM = Rule("norm", _norm)
