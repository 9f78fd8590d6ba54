"""The proof of a sum of networks: the written file is read again and held against the inputs, in float64.

Inputs and result go through :func:`lorapipe_engine.delta.dense_delta`, which shares no code with the factors that were
stacked and cut. Exact sums may differ by the rounding of the two factors alone, element by element: with U and D as
they are in the file, |Û D̂ - U D| ≤ 2ε |Û| |D̂|. Rank-limited ones may differ by the reported truncation on top of that,
as Frobenius norms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.delta import Module, dense_delta
from lorapipe_engine.delta.base import flat
from lorapipe_engine.delta.lora import lora_factors, lora_scale
from lorapipe_engine.errors import ProblemFound
from lorapipe_engine.files.tensorfile import WeightFile, open_tensors, quote
from lorapipe_engine.files.threads import map_in_threads
from lorapipe_engine.networks.describe import NetworkModule, describe_network
from lorapipe_engine.networks.read import read_module
from lorapipe_merge.networks.layers import Layer, Part
from lorapipe_merge.networks.report import Checked, LayerReport

Array = NDArray[Any]

# Half a step at 1, and half the smallest step.
_ROUNDING: Mapping[str, tuple[float, float]] = {
    "F16": (2.0**-11, 2.0**-25),
    "BF16": (2.0**-8, 2.0**-134),
    "F32": (2.0**-24, 2.0**-150),
    "F64": (2.0**-53, 0.0),
}
# Numbers are rounded to float32 before they are rounded to 16 bits.
_TWICE = 1.01
# Float64 maths on both sides, of the largest value of a layer.
_MATHS = 1e-9


@dataclass(frozen=True)
class _Difference:
    """One layer: ``largest`` difference of a value, the ``norm`` of all of them, that of the ``change`` itself, and the
    difference in units of what is allowed. ``compared`` is False where the inputs are not finite.
    """

    largest: float = 0.0
    norm: float = 0.0
    change: float = 0.0
    share: float = 0.0
    compared: bool = True


def verify_networks(written: Path, layers: Sequence[Layer], reports: Sequence[LayerReport]) -> Checked:
    """Hold a written sum against its inputs; ``reports``: what was told of each layer.

    Raises ProblemFound naming the first layer that is missing, that nothing asked for, or that differs from the sum by
    more than rounding and truncation explain.
    """
    with open_tensors(written) as file:
        modules = describe_network(file).modules
        _check_names(modules, layers)
        jobs = list(zip(layers, reports, strict=True))
        rows = map_in_threads(
            lambda job: _check_layer(file, modules[job[0].name], job[0], job[1]), jobs, "verifying"
        )
    change = float(np.sqrt(sum(row.change**2 for row in rows)))
    return Checked(
        layers=sum(row.compared for row in rows),
        not_finite=sum(not row.compared for row in rows),
        largest=max((row.largest for row in rows), default=0.0),
        error=float(np.sqrt(sum(row.norm**2 for row in rows))) / change if change else 0.0,
        share=max((row.share for row in rows), default=0.0),
    )


def _check_names(modules: Mapping[str, NetworkModule], layers: Sequence[Layer]) -> None:
    names = {layer.name for layer in layers}
    for name in (*(names - modules.keys()), *(modules.keys() - names)):
        what = "has no module" if name in names else "has a module that no input has:"
        raise ProblemFound(f"the written file {what} {quote(name)[1:-1]}; nothing was kept")


def _check_layer(file: WeightFile, module: NetworkModule, layer: Layer, report: LayerReport) -> _Difference:
    tensors = read_module(file, module)
    step, smallest = _ROUNDING[
        file.tensors[next(key for s, key in module.keys.items() if s != "alpha")].dtype
    ]
    change = dense_delta(tensors, name=layer.name)
    rounding = _rounding(layer.name, tensors, step * _TWICE, smallest)
    parts = [_exact(part) for part in layer.parts]
    weight = _compare(layer, change.weight, [one for one, _ in parts], rounding, report)
    bias_rounding = None if change.bias is None else step * _TWICE * np.abs(change.bias) + smallest
    bias = _compare(layer, change.bias, [one for _, one in parts], bias_rounding, report)
    return _Difference(
        largest=max(weight.largest, bias.largest),
        norm=float(np.hypot(weight.norm, bias.norm)),
        change=float(np.hypot(weight.change, bias.change)),
        share=max(weight.share, bias.share),
        compared=weight.compared and bias.compared,
    )


def _exact(part: Part) -> tuple[Array | None, Array | None]:
    """What one input adds to the weight and to the bias."""
    tensors = read_module(part.weights, part.module)
    name = part.module.name
    weight = None
    if tensors.keys() - {"alpha", "diff_b", "b_norm"}:
        weight = dense_delta(tensors, multiplier=part.ratio, name=name).weight
    bias = next((tensors[suffix] for suffix in ("diff_b", "b_norm") if suffix in tensors), None)
    return weight, None if bias is None else part.ratio * bias.astype(np.float64)


def _rounding(name: str, tensors: Mapping[str, Array], step: float, smallest: float) -> Array | None:
    """What rounding may have done to each value of the weight's change: (o, n), or the array's own shape."""
    if "lora_up.weight" in tensors:
        module = Module(name=name, tensors=tensors)
        up, down = lora_factors(module)
        up, down = np.abs(up), np.abs(flat(down))
        noise: Array = 2 * step * (up @ down)
        noise += smallest * (up.sum(axis=1, keepdims=True) + down.sum(axis=0, keepdims=True))
        return noise * abs(lora_scale(module))
    array = next((tensors[suffix] for suffix in ("diff", "w_norm") if suffix in tensors), None)
    if array is None:
        return None
    rounding: Array = step * np.abs(array.astype(np.float64)) + smallest
    return rounding


def _compare(
    layer: Layer,
    written: Array | None,
    parts: Sequence[Array | None],
    rounding: Array | None,
    report: LayerReport,
) -> _Difference:
    wanted = [part for part in parts if part is not None]
    if written is None and not any(np.any(part) for part in wanted):
        return _Difference()
    if written is None or rounding is None or not wanted:
        raise ProblemFound(
            f"{layer.name}: the written file does not hold what the inputs change; nothing was kept"
        )
    exact = sum((part.reshape(-1) for part in wanted[1:]), wanted[0].reshape(-1))
    if exact.size != written.size:
        raise ProblemFound(
            f"{layer.name}: the written file has another size than the inputs; nothing was kept"
        )
    if not np.isfinite(exact).all():
        return _Difference(compared=False)
    off = np.abs(written.reshape(-1) - exact)
    rounding = rounding.reshape(-1) + _MATHS * float(np.abs(exact).max(initial=0.0))
    norm, change = float(np.linalg.norm(off)), float(np.linalg.norm(exact))
    if report.truncation:
        allowed = report.truncation * change * (1 + 1e-6) + float(np.linalg.norm(rounding))
        share = norm / allowed
    else:
        share = float(np.divide(off, rounding, out=np.zeros_like(off), where=off > 0).max(initial=0.0))
    if not share <= 1.0:
        raise ProblemFound(
            f"{layer.name}: the written file differs from the sum of its inputs by {off.max():.3g}, more than rounding "
            "and truncation explain; nothing was kept"
        )
    return _Difference(float(off.max(initial=0.0)), norm, change, share)
