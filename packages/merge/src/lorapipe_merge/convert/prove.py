"""How far a converted module is from what it was made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.delta import needs_base
from lorapipe_engine.delta.apart import changes_apart
from lorapipe_engine.delta.full import BIAS_SUFFIXES
from lorapipe_engine.files.dtypes import Encoded, decode
from lorapipe_engine.files.tensorfile import WeightFile
from lorapipe_engine.networks.describe import NetworkModule
from lorapipe_engine.networks.read import module_label, read_module
from lorapipe_engine.networks.underflow import Loss, check_kept, lacks_digits, tensor_loss
from lorapipe_merge.convert.forms import Form, Target, write_form

Array = NDArray[Any]
_BIASES = frozenset({*BIAS_SUFFIXES, "lora_up.bias"})
_BESIDE = ("dora_scale", "diff_b", "b_norm")


def largest_difference(
    one: WeightFile, before: NetworkModule, two: WeightFile, after: NetworkModule
) -> float:
    """‖ΔW - ΔW'‖/‖ΔW‖ of two modules, or the relative difference of what is beside the factors if that is larger.

    Of a change that depends on the base it is the largest relative difference of the tensors that make it.
    """
    first, second = read_module(one, before), read_module(two, after)
    worst = 0.0
    if by_inputs(first) != by_inputs(second):
        return np.inf
    for suffix in _BESIDE:
        if suffix in first or suffix in second:
            worst = max(worst, _tensors_apart(first.pop(suffix, None), second.pop(suffix, None)))
    if set(first) <= {"alpha"} and set(second) <= {"alpha"}:
        return worst
    if needs_base(first) and first.keys() == second.keys():
        return max(worst, *(_tensors_apart(first[key], second[key]) for key in first))
    apart = changes_apart(first, second, before.name)
    return np.inf if apart is None else max(worst, _relative(apart["apart"], apart["norms"][0]))


def _tensors_apart(one: Array | None, two: Array | None) -> float:
    if one is None or two is None or one.size != two.size:
        return np.inf
    a, b = (tensor.astype(np.float64).reshape(-1) for tensor in (one, two))
    return _relative(float(np.linalg.norm(a - b)), float(np.linalg.norm(a)))


def rounding_loss(
    form: Form, suffix: str, tensor: Encoded, file: WeightFile, target: Target
) -> Iterator[Loss]:
    """What fp16 takes of a tensor that is written, where its numbers are too small for it.

    Raises InputError where nothing is left of a tensor without which the module changes nothing.
    """
    if tensor.dtype != "F16":
        return
    rounded = decode(tensor.dtype, tensor.data, tensor.shape)
    if not lacks_digits(rounded):
        return
    wide = write_form(form, file, replace(target, precision="fp32"), only=suffix)[suffix]
    exact = decode(wide.dtype, wide.data, wide.shape)
    if suffix not in _BIASES or form.module.keys.keys() <= {*_BIASES, "alpha"}:
        check_kept(module_label(file, form.module), [exact], [rounded], "fp16")
    yield tensor_loss(form.module.name, exact, rounded)


def by_inputs(tensors: Mapping[str, Array]) -> bool:
    """Whether DoRA's magnitudes go by inputs."""
    magnitudes = tensors.get("dora_scale")
    return magnitudes is not None and magnitudes.size > 1 and magnitudes.shape[0] == 1


def _relative(apart: float, size: float) -> float:
    return apart / size if size else (0.0 if apart == 0 else np.inf)
