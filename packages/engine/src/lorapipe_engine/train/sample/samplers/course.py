"""The course of a picture: which times the model is asked for, and how its answers become what a method needs.

Everything that depends on the step alone is a number known beforehand, so a loop over a course never waits for the
device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models.predictions import FLOW
from lorapipe_engine.sampling.noise.samplers import Sampler, check_flow, count_evaluations, true_schedule
from lorapipe_engine.sampling.noise.schedules import (
    AUTOMATIC,
    TIMES,
    NoiseTable,
    ddim_times,
    find_schedule,
    lcm_sigmas,
    lcm_times,
    make_sigmas,
    unipc_times,
)
from lorapipe_engine.train.objective.flow import flow_levels
from lorapipe_engine.train.sample.samplers.methods import METHODS, Noise, Steps, ddim, plms
from lorapipe_engine.train.sample.samplers.unipc import unipc

Prediction = Literal["epsilon", "v_prediction", "flow_prediction"]
LCM_SHARE = 0.5  # sigma of the data in LCM's boundary condition
LCM_SCALE = 10.0  # of its timesteps


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the model: it sees ``x * scale`` at ``time`` (0..999, with fractions), and the method is sent
    ``x * skip + output * out``.
    """

    time: float
    scale: float
    skip: float
    out: float


@dataclass(frozen=True)
class Course:
    """``levels``: sigmas, or for DDIM, PLMS and UniPC timesteps, falling. ``first``: what unit noise is multiplied with
    to be the first x.
    """

    sampler: Sampler
    levels: tuple[float, ...]
    evaluations: tuple[Evaluation, ...]
    first: float
    table: NoiseTable
    eta: float

    def walk(self, x: Tensor, noise: Noise) -> Steps:
        """The method's generator from ``x``, which is unit noise times ``first``."""
        return _walk(self.sampler, x, self.levels, self.table, noise, self.eta)


def plan_course(
    sampler: Sampler,
    schedule: str,
    steps: int,
    table: NoiseTable,
    prediction: Prediction = "epsilon",
    eta: float | None = None,
    flow_shift: float = 1.0,
) -> Course:
    """The course of ``steps`` steps of a sampler by a schedule's label, "Automatic" among them.

    ``eta``: the share of noise, which moves the midpoints of some methods too; None is what the sampler does by itself.
    ``flow_shift``: of the levels of a flow model, which have one schedule and few samplers.

    Raises ConfigError for a schedule that the sampler does not take, for numbers of steps that it cannot run, and for
    noise prediction on a table that ends without any signal, where noise says nothing of the picture.
    """
    label = true_schedule(sampler, schedule)
    count_evaluations(sampler, steps)
    if prediction == FLOW.name:
        return _flow_course(sampler, find_schedule(schedule), steps, table, flow_shift)
    if prediction == "epsilon" and table.most > 1000:
        raise ConfigError("a base that predicts noise cannot begin at zero terminal SNR; v-prediction can")
    levels = _levels(sampler, label, steps, table)
    share = (sampler.eta or 0.0) if eta is None else eta
    points = _points(sampler, levels, table, share)
    over_times = sampler.own_schedule and sampler.noise != "lcm"
    if over_times:
        evaluations = [_of_time(time, table, prediction) for time in points]
    else:
        evaluations = [_of_sigma(sampler, sigma, table, prediction) for sigma in points]
    return Course(sampler, levels, tuple(evaluations), 1.0 if over_times else levels[0], table, share)


def _flow_course(sampler: Sampler, label: str, steps: int, table: NoiseTable, shift: float) -> Course:
    """A flow model's levels are shares of noise from 1 to 0; x is no picture plus noise but the way between both."""
    check_flow(sampler, label)
    levels = tuple(flow_levels(steps, shift))
    points = _points(sampler, levels, table, 0.0)
    evaluations = tuple(Evaluation(TIMES * share, 1.0, 1.0, -share) for share in points)
    return Course(sampler, levels, evaluations, 1.0, table, 0.0)


def _levels(sampler: Sampler, label: str, steps: int, table: NoiseTable) -> tuple[float, ...]:
    if sampler.noise == "lcm":
        return tuple(lcm_sigmas(steps, table).tolist())
    if sampler.evaluations == "unipc":
        return (*unipc_times(steps).tolist(), 0.0)
    if sampler.own_schedule:
        return tuple(ddim_times(steps)[::-1].tolist())
    name = "Uniform" if label == AUTOMATIC else label
    return tuple(make_sigmas(name, steps, table, discards=sampler.discards).tolist())


def _walk(
    sampler: Sampler, x: Tensor, levels: Sequence[float], table: NoiseTable, noise: Noise, eta: float
) -> Steps:
    if sampler.evaluations == "unipc":
        return unipc(x, levels, lambda time: _alpha(table, time))
    if sampler.evaluations in ("ddim", "plms"):
        alphas = (1 / (1 + table.sigmas**2)).tolist()
        method = ddim if sampler.evaluations == "ddim" else plms
        return method(x, [int(time) for time in levels], alphas, noise, eta)
    return METHODS[sampler.name](x, levels, noise, eta)


def _points(sampler: Sampler, levels: Sequence[float], table: NoiseTable, eta: float) -> list[float]:
    """The sigmas or times at which the method asks, found by walking with nothing."""
    nothing = torch.zeros(1)
    steps = _walk(sampler, nothing, levels, table, lambda *_: nothing, eta)
    points = []
    try:
        _, point = next(steps)
        while True:
            points.append(point)
            _, point = steps.send(nothing)
    except StopIteration:
        return points


def _of_sigma(sampler: Sampler, sigma: float, table: NoiseTable, prediction: Prediction) -> Evaluation:
    scale = 1 / math.sqrt(1 + sigma**2)
    skip, out = (1.0, -sigma) if prediction == "epsilon" else (scale**2, -sigma * scale)
    time = float(table.time_at(sigma))
    if sampler.noise == "lcm":
        # The model was distilled to answer with the picture itself, joined to x near time 0.
        time = float(lcm_times(np.array([sigma]), table)[0])
        whole = (time * LCM_SCALE) ** 2 + LCM_SHARE**2
        share = time * LCM_SCALE / math.sqrt(whole)
        skip, out = skip * share + LCM_SHARE**2 / whole, out * share
    return Evaluation(time, scale, skip, out)


def _of_time(time: float, table: NoiseTable, prediction: Prediction) -> Evaluation:
    # A1111 takes the alpha of the whole timestep to make noise of v.
    alpha = _alpha(table, int(time))
    skip, out = (0.0, 1.0) if prediction == "epsilon" else (math.sqrt(1 - alpha), math.sqrt(alpha))
    return Evaluation(time, 1.0, skip, out)


def _alpha(table: NoiseTable, time: float) -> float:
    """Cumulative alpha of a time; between whole ones its logarithm is interpolated."""
    low = min(int(time), len(table.sigmas) - 2)
    pair = [-math.log1p(float(sigma) ** 2) for sigma in table.sigmas[low : low + 2]]
    return math.exp(pair[0] + (pair[1] - pair[0]) * (time - low))
