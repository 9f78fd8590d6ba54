"""How far a converted module is from what it was made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.delta.apart import changes_apart
from lorapipe_engine.files.tensorfile import WeightFile
from lorapipe_engine.networks.describe import NetworkModule
from lorapipe_engine.networks.read import read_module

_BESIDE = ("dora_scale", "diff_b", "b_norm")


def largest_difference(
    one: WeightFile, before: NetworkModule, two: WeightFile, after: NetworkModule
) -> float:
    """‖ΔW - ΔW'‖/‖ΔW‖ of two modules, or the relative difference of what is beside the factors if that is larger.

    Changes that depend on the base are compared by the tensors that make them.
    """
    first, second = read_module(one, before), read_module(two, after)
    worst = 0.0
    if by_inputs(first) != by_inputs(second):
        return np.inf
    for suffix in _BESIDE:
        if suffix in first or suffix in second:
            a, b = (row.pop(suffix, np.zeros(1)).astype(np.float64).reshape(-1) for row in (first, second))
            size = float(np.linalg.norm(a))
            worst = max(
                worst, _relative(float(np.linalg.norm(a - b)) if a.shape == b.shape else np.inf, size)
            )
    if set(first) <= {"alpha"} and set(second) <= {"alpha"}:
        return worst
    apart = changes_apart(first, second, before.name)
    if apart is not None:
        return max(worst, _relative(apart["apart"], apart["norms"][0]))
    same = first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)
    return worst if same else np.inf


def by_inputs(tensors: Mapping[str, NDArray[Any]]) -> bool:
    """Whether DoRA's magnitudes go by inputs."""
    magnitudes = tensors.get("dora_scale")
    return magnitudes is not None and magnitudes.size > 1 and magnitudes.shape[0] == 1


def _relative(apart: float, size: float) -> float:
    return apart / size if size else (0.0 if apart == 0 else np.inf)
