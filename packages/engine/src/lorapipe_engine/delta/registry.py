"""The table of algorithms and the one way in: :func:`dense_delta`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from lorapipe_engine.delta.base import Array, Module, Rule, flat
from lorapipe_engine.delta.dora import apply_dora
from lorapipe_engine.delta.full import BIAS_SUFFIXES, bias_change
from lorapipe_engine.errors import InputError
from lorapipe_engine.networks import algorithms
from lorapipe_engine.networks.algorithms import Algorithm, find_algorithm


def rules() -> dict[str, Rule]:
    """The rules of all algorithms of the table, by name."""
    return {row.name: rule_of(row) for row in algorithms.ALGORITHMS}


@cache
def rule_of(row: Algorithm) -> Rule:
    """The rule that a row of the table of algorithms names."""
    module, _, name = row.rule.partition(":")
    rule = getattr(import_module(module), name)
    assert isinstance(rule, Rule), row.rule
    return rule


class Change(NamedTuple):
    """W' - W and bias' - bias; None for the part that the module leaves alone."""

    weight: Array | None
    bias: Array | None


def find_rule(name: str, suffixes: Collection[str]) -> Rule:
    """The rule for a module that has tensors of these suffixes.

    Raises InputError naming the module if no algorithm, or more than one, answers to them.
    """
    rule = known_rule(suffixes)
    if rule is None:
        raise InputError(
            f"module {name}: its tensors are not those of one known algorithm: {', '.join(sorted(suffixes))}"
        )
    return rule


def known_rule(suffixes: Collection[str]) -> Rule | None:
    """The rule for a module that has tensors of these suffixes; None where no algorithm, or more than one, fits."""
    algorithm = find_algorithm(suffixes)
    return None if algorithm is None else rule_of(algorithm)


def needs_base(suffixes: Collection[str]) -> bool:
    """Whether the change of a module with these tensors depends on the weight it is applied to."""
    rule = known_rule(suffixes)
    return "dora_scale" in suffixes or (rule is not None and rule.needs_base)


def dense_delta(
    tensors: Mapping[str, Array],
    weight: Array | None = None,
    bias: Array | None = None,
    multiplier: float = 1.0,
    *,
    name: str = "",
    shape: tuple[int, ...] | None = None,
    dtype: type[np.floating[Any]] = np.float64,
) -> Change:
    """The dense change that one module makes to a weight and a bias, whatever its algorithm.

    ``tensors`` maps suffixes to arrays (float types that numpy has; bf16 decoded before). ``weight`` is the
    base weight, (out, in), (out, in, k, k) or (c,); it is needed for ia3, glora, oft and dora
    (:func:`needs_base`) and otherwise only gives the result its shape, as ``shape`` does. Without either,
    factors that a file holds flattened give (out, in·k·k). ``dtype`` is that of the maths and of the result.

    Formulas: LyCORIS, sd-scripts and the papers named in each module of this folder. Raises InputError naming
    the module for missing tensors, shapes that do not fit, and a base that is needed and was not given.
    """
    module = Module(name=name, tensors=tensors, weight=weight, dtype=dtype)
    rule = find_rule(name, tensors.keys())
    target = weight.shape if weight is not None else shape
    if "dora_scale" in tensors:
        inner = _shaped(module, rule.change(module, 1.0), target)
        if inner is None or rule.needs_base:
            raise module.error(f"dora_scale has no meaning on {rule.name}")
        change: Array | None = apply_dora(module, inner, multiplier)
    else:
        change = _shaped(module, rule.change(module, multiplier), target)
    return Change(change, _checked_bias(module, bias, bias_change(module, multiplier)))


def _shaped(module: Module, change: Array | None, shape: tuple[int, ...] | None) -> Array | None:
    """``change`` in the weight's shape; (o, i) and (o, i, 1, 1) are taken for each other."""
    if change is None or shape is None or change.shape == shape:
        return change
    rows_fit = change.ndim > 1 and len(shape) > 1 and change.shape[0] == shape[0]
    if not rows_fit or flat(change).shape[1] != int(np.prod(shape[1:])):
        raise module.error(f"its change has shape {change.shape}, the base weight {tuple(shape)}")
    if change.ndim == 4 and len(shape) == 4:  # same count, other kernel: not the same layer
        raise module.error(f"its change has shape {change.shape}, the base weight {tuple(shape)}")
    return change.reshape(shape)


def _checked_bias(module: Module, bias: Array | None, change: Array | None) -> Array | None:
    if change is not None and bias is not None and change.shape != bias.shape:
        suffix = next(s for s in BIAS_SUFFIXES if module.has(s))
        raise module.error(f"{suffix} has shape {change.shape}, the bias {bias.shape}")
    return change
