"""Rectified flow: the model answers how latents change on the straight way from a picture to noise.

Latents z and noise n are (B, C, h, w) float32, σ (B,) is the share of noise in 0..1. The model is shown
x = (1 - σ)·z + σ·n at the time 1000σ, which is no whole number, and answers v = n - z (Liu et al. 2023, Esser et al.
2024). Weights of losses are SD 3's. Options have the names of sd-scripts and of SDXL flow trainers. But for the
reassignment of noise nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models.predictions import FLOW
from lorapipe_engine.settings import LossSettings
from lorapipe_engine.train.objective.loss import sample_losses
from lorapipe_engine.train.objective.noise import check_noise, draw_noise, noise_notes, perturb
from lorapipe_engine.train.objective.objective import Noised, Objective, Sampler
from lorapipe_engine.train.objective.times import (
    SAMPLINGS,
    TIMESTEPS,
    Cells,
    Draws,
    TimeCurve,
    check_times,
    chosen,
    in_range,
    range_notes,
    shifted,
)

LEAST = 1e-3  # σ that weights are made of: one timestep
# Weights by the signal-to-noise ratio of a diffusion schedule, which flow has not.
_OF_DIFFUSION = (
    *("min_snr_gamma", "debiased_estimation_loss", "scale_v_pred_loss_like_noise_pred", "v_pred_like_loss"),
    "zero_terminal_snr",
)
_OF_DISTRIBUTIONS = {
    "flow_logit_mean": "logit_normal",
    "flow_logit_std": "logit_normal",
    "flow_uniform_static_ratio": "uniform",
    "flow_uniform_shift": "uniform",
    "flow_uniform_base_pixels": "uniform",
}


class Flow(Objective):
    """Rectified flow on any family whose denoiser was trained so."""

    samplers = ("euler", "k_euler")

    def __init__(
        self, options: LossSettings, prediction: str = FLOW.name, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(options, prediction, device)
        self._curve = TimeCurve(options, self.device) if options.timestep_curve else None

    @classmethod
    def check(cls, options: LossSettings, prediction: str | None) -> list[str]:  # noqa: ARG003
        return check_flow(options)

    @property
    def why_not_captured(self) -> str | None:
        if self.options.flow_use_ot:
            return "flow_use_ot compares pictures and noise on the processor"
        return "multires noise draws sizes" if self.options.multires_noise_iterations else None

    @property
    def why_not_shared(self) -> str | None:
        names = ("flow_use_ot", "contrastive_flow_matching")
        name = next((name for name in names if getattr(self.options, name)), None)
        return name and f"{name}: needs the whole batch in one process"

    def draw(self, latents: Tensor, time: float | None = None) -> Noised:
        noise = draw_noise(latents, self.options)
        if self.options.flow_use_ot:
            noise = noise[nearest_noise(latents, noise)]
        if time is None:
            height, width = latents.shape[2:]
            sigma = self.shares(Draws(len(latents), latents.device), (height, width))
        else:
            sigma = torch.full((len(latents),), time / TIMESTEPS, device=latents.device)
        share = sigma.view(-1, 1, 1, 1)
        shown = (1 - share) * latents + share * perturb(noise, self.options)
        weights = loss_weights(sigma, self.options.weighting_scheme)
        return Noised(shown, sigma * TIMESTEPS, noise - latents, weights, noise)

    def shares(self, draws: Draws, cells: Cells) -> Tensor:
        """σ of a batch of latents of ``cells`` (height, width), (B,)."""
        options = self.options
        if self._curve is not None:
            return self._curve.draw(draws)
        if options.timestep_sampling is not None:
            return in_range(SAMPLINGS[options.timestep_sampling](draws, options, cells), options)
        if options.flow_timestep_distribution == "uniform":
            return in_range(shifted(draws.uniform(), self._uniform_shift(cells)), options)
        mean, deviation = chosen(options, "flow_logit_mean"), chosen(options, "flow_logit_std")
        return in_range(torch.sigmoid(mean + deviation * draws.normal()), options)

    def _uniform_shift(self, cells: Cells) -> float:
        """k of the uniform distribution: a given ratio wins."""
        if self.options.flow_uniform_static_ratio is not None:
            return self.options.flow_uniform_static_ratio
        if not self.options.flow_uniform_shift:
            return 1.0
        pixels = cells[0] * cells[1] * self.latent_factor**2
        return math.sqrt(pixels / chosen(self.options, "flow_uniform_base_pixels"))

    def losses(self, prediction: Tensor, noised: Noised, mask: Tensor | None = None) -> Tensor:
        options, threshold = self.options, None
        if options.loss_type in ("huber", "smooth_l1"):
            threshold = huber_threshold(noised.times / TIMESTEPS, options)
        own = sample_losses(prediction, noised.target, options.loss_type, threshold, mask)
        if not options.contrastive_flow_matching or len(prediction) < 2:
            return own
        others = sample_losses(prediction, noised.target.roll(1, 0), options.loss_type, threshold, mask)
        return own - chosen(options, "cfm_lambda") * others

    def validation_times(self, count: int) -> list[float]:
        """The inner points of ``count + 2`` evenly spread over the trained range."""
        low, high = self.options.min_timestep, self.options.max_timestep
        if low >= high:
            return [high]
        return [low + (high - low) * number / (count + 1) for number in range(1, count + 1)]

    def sampler(self, name: str | None, steps: int) -> Sampler:
        self.check_sampler(name)
        return FlowEuler(steps, self.options.flow_sample_shift, self.device)


class FlowEuler:
    """Euler's steps from noise (σ = 1) to a picture (σ = 0), as diffusers' schedulers are used."""

    init_noise_sigma = 1.0

    def __init__(self, steps: int, shift: float, device: torch.device) -> None:
        self.levels = flow_levels(steps, shift)
        self.timesteps = torch.tensor(self.levels[:-1], dtype=torch.float32, device=device) * TIMESTEPS
        self._place = 0

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """The latents as they are."""
        del timestep
        return sample

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **more: Any) -> Any:
        """x + (σ' - σ)·v."""
        del timestep, more
        width = self.levels[self._place + 1] - self.levels[self._place]
        self._place += 1
        return SimpleNamespace(prev_sample=sample + width * model_output)


# -------------------------------------------------------------------------------- formulas


def flow_levels(steps: int, shift: float) -> list[float]:
    """σ of ``steps`` steps, from 1 to 0: even ones, shifted once."""
    even = [1 - step / steps for step in range(steps + 1)]
    return [shift * share / (1 + (shift - 1) * share) for share in even]


def loss_weights(sigma: Tensor, scheme: str | None) -> Tensor:
    """The weight of each row's loss, (B,): σ^-2, 2 / (π(1 - 2σ + 2σ²)), or 1."""
    if scheme == "sigma_sqrt":
        return sigma.clamp(min=LEAST) ** -2
    if scheme == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma**2))
    return torch.ones_like(sigma)


def huber_threshold(sigma: Tensor, options: LossSettings) -> Tensor:
    """Where the Huber losses turn from square to linear, (B,): constant, or falling from ``huber_scale`` with σ."""
    if options.huber_schedule == "constant":
        return torch.full_like(sigma, options.huber_c * options.huber_scale)
    return torch.full_like(sigma, options.huber_c) ** sigma * options.huber_scale


def nearest_noise(latents: Tensor, noise: Tensor) -> list[int]:
    """Which noise each picture of a batch gets, so that the sum of cosines between both is the largest."""
    rows, columns = (F.normalize(part.flatten(1).double(), dim=1) for part in (latents, noise))
    return assign((-(rows @ columns.T)).tolist())


def assign(costs: Sequence[Sequence[float]]) -> list[int]:
    """The column of each row of a square table, no column twice, with the least sum (Kuhn 1955, with potentials)."""
    count = len(costs)
    of_row, of_column = [0.0] * (count + 1), [0.0] * (count + 1)
    owner = [0] * (count + 1)  # of each column, from 1; column 0 holds the row that is being placed
    for row in range(1, count + 1):
        owner[0], column = row, 0
        least, before, used = [math.inf] * (count + 1), [0] * (count + 1), [False] * (count + 1)
        while owner[column]:
            used[column] = True
            here, step, following = owner[column], math.inf, 0
            for other in range(1, count + 1):
                if used[other]:
                    continue
                cost = costs[here - 1][other - 1] - of_row[here] - of_column[other]
                if cost < least[other]:
                    least[other], before[other] = cost, column
                if least[other] < step:
                    step, following = least[other], other
            for other in range(count + 1):
                if used[other]:
                    of_row[owner[other]] += step
                    of_column[other] -= step
                else:
                    least[other] -= step
            column = following
        while column:
            owner[column] = owner[before[column]]
            column = before[column]
    places = [0] * count
    for column in range(1, count + 1):
        places[owner[column] - 1] = column - 1
    return places


# -------------------------------------------------------------------------------- options


def check_flow(options: LossSettings) -> list[str]:
    """What the user should know of a flow model's options. Raises ConfigError for those that mean nothing with flow."""
    check_noise(options)
    if options.v_parameterization:
        raise ConfigError("flow_model: a base predicts flow or v, not both; leave v_parameterization out")
    if name := next((name for name in _OF_DIFFUSION if getattr(options, name)), None):
        raise ConfigError(
            f"{name}: is made for the noise schedule of diffusion, and this base predicts flow; leave it out"
        )
    if options.loss_type in ("huber", "smooth_l1"):
        if options.huber_schedule == "snr":
            raise ConfigError(
                "huber_schedule: snr is of diffusion, and this base predicts flow; give exponential"
            )
        if options.huber_c == 0:
            raise ConfigError("huber_c: must be above 0")
    given = options.timestep_sampling or ("timestep_curve" if options.timestep_curve else None)
    if given and options.flow_timestep_distribution:
        raise ConfigError(
            f"flow_timestep_distribution: times are drawn by {given} already; leave one of both out"
        )
    own = None if given else options.flow_timestep_distribution or "logit_normal"
    notes = [
        f"{name} does nothing without flow_timestep_distribution {kind}"
        for name, kind in _OF_DISTRIBUTIONS.items()
        if getattr(options, name) not in (None, False) and own != kind
    ]
    if options.weighting_scheme in ("logit_normal", "mode") and options.timestep_sampling != "sigma":
        notes.append(
            f"weighting_scheme {options.weighting_scheme} does nothing without timestep_sampling sigma"
        )
    if options.cfm_lambda is not None and not options.contrastive_flow_matching:
        notes.append("cfm_lambda does nothing without contrastive_flow_matching")
    if options.flow_uniform_base_pixels is not None and not options.flow_uniform_shift:
        notes.append("flow_uniform_base_pixels does nothing without flow_uniform_shift")
    return [*notes, *range_notes(options), *noise_notes(options), *check_times(options, tuple(SAMPLINGS))]
