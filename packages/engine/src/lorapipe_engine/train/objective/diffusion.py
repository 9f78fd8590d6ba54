"""The objective of Stable Diffusion 1.x, 2.x and XL: noise of a scaled-linear schedule, ε or v to be predicted.

Latents x and noise ε are (B, C, h, w) float32, timesteps t (B,) int64 in 0..999. Formulas: DDPM (Ho et al. 2020),
v-prediction (Salimans & Ho 2022), min-SNR (Hang et al. 2023), zero terminal SNR (Lin et al. 2023); the order of
the steps is sd-scripts', so that a run gives the field's results. Nothing here waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorapipe_engine.command.process.libraries import library_imports
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models.predictions import EPSILON, PREDICTIONS, V
from lorapipe_engine.settings import LossSettings
from lorapipe_engine.train.objective.loss import sample_losses
from lorapipe_engine.train.objective.noise import check_noise, draw_noise, noise_notes, perturb
from lorapipe_engine.train.objective.objective import Noised, Objective, Sampler
from lorapipe_engine.train.objective.times import (
    SAMPLINGS,
    TIMESTEPS,
    Draws,
    TimeCurve,
    check_times,
    in_range,
    range_notes,
)

OWN_SAMPLINGS = ("uniform", "sigmoid", "logit_normal", "shift")
# What only a flow model has a use for.
FLOW_OPTIONS = (
    *("weighting_scheme", "mode_scale", "flow_timestep_distribution", "flow_logit_mean", "flow_logit_std"),
    *("flow_uniform_static_ratio", "flow_uniform_shift", "flow_uniform_base_pixels", "flow_use_ot"),
    *("contrastive_flow_matching", "cfm_lambda"),
)
BETAS = (0.00085, 0.012)
# kohya's sampler names -> diffusers class and its settings
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {"steps_offset": 1}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {"steps_offset": 1}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmsolver": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {}),
    "dpmsingle": ("DPMSolverSinglestepScheduler", {}),
}
ALIASES = {
    "k_lms": "lms",
    "k_euler": "euler",
    "k_euler_a": "euler_a",
    "k_dpm_2": "dpm_2",
    "k_dpm_2_a": "dpm_2_a",
}


@dataclass(frozen=True)
class NoiseSchedule:
    """``alpha_bar``: ᾱ (1000,), the one used to make x_t; ``snr``: ᾱ/(1-ᾱ) (1000,) of the untouched schedule, which
    all loss weights use."""

    alpha_bar: Tensor
    snr: Tensor

    @classmethod
    def stable_diffusion(
        cls, *, zero_terminal_snr: bool = False, device: torch.device | str = "cpu"
    ) -> NoiseSchedule:
        """The scaled-linear schedule of all Stable Diffusion models, β from 0.00085 to 0.012."""
        first, last = BETAS
        beta = torch.linspace(first**0.5, last**0.5, TIMESTEPS, dtype=torch.float32) ** 2
        alpha_bar = torch.cumprod(1 - beta, 0)
        snr = alpha_bar / (1 - alpha_bar)
        if zero_terminal_snr:
            root = alpha_bar.sqrt()
            root = (root - root[-1]) * root[0] / (root[0] - root[-1])
            # Through β and back, in float32, as the reference does: the last digits of ᾱ near 0 depend on it.
            squared = root**2
            alpha = torch.cat([squared[:1], squared[1:] / squared[:-1]])
            alpha_bar = torch.cumprod(1 - (1 - alpha), 0)
        return cls(alpha_bar.to(device), snr.to(device))


class Diffusion(Objective):
    """ε- or v-prediction under Stable Diffusion's schedule, with sd-scripts' noise and weighting options."""

    samplers = (*SAMPLERS, *ALIASES)

    def __init__(
        self, options: LossSettings, prediction: str = EPSILON.name, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(options, prediction, device)
        self.predicts_v = prediction == V.name
        self.schedule = NoiseSchedule.stable_diffusion(
            zero_terminal_snr=options.zero_terminal_snr, device=device
        )
        self._curve = TimeCurve(options, self.device) if options.timestep_curve else None

    @classmethod
    def check(cls, options: LossSettings, prediction: str | None) -> list[str]:
        v = None if prediction is None else prediction == V.name
        return [*check_options(options, v), *check_own_times(options, prediction)]

    @property
    def why_not_captured(self) -> str | None:
        return "multires noise draws sizes" if self.options.multires_noise_iterations else None

    def draw(self, latents: Tensor, time: float | None = None) -> Noised:
        noise = draw_noise(latents, self.options)
        if time is None:
            times = self._times(latents)
        else:
            times = torch.full((len(latents),), int(time), dtype=torch.int64, device=latents.device)
        noisy = add_noise(latents, perturb(noise, self.options), times, self.schedule)
        target = v_of(latents, noise, times, self.schedule) if self.predicts_v else noise
        weights = loss_weights(times, self.schedule, self.options, predicts_v=self.predicts_v)
        return Noised(noisy, times, target, weights, noise)

    def _times(self, latents: Tensor) -> Tensor:
        options, draws = self.options, Draws(len(latents), latents.device)
        if self._curve is not None:
            return whole_times(self._curve.draw(draws))
        if options.timestep_sampling in (None, "uniform"):
            return draw_timesteps(len(latents), options, latents.device)
        height, width = latents.shape[2:]
        share = SAMPLINGS[options.timestep_sampling](draws, options, (height, width))
        return whole_times(in_range(share, options), options.min_timestep, options.max_timestep)

    def losses(self, prediction: Tensor, noised: Noised, mask: Tensor | None = None) -> Tensor:
        threshold = None
        if self.options.loss_type in ("huber", "smooth_l1"):
            threshold = huber_threshold(noised.times, self.schedule, self.options)
        return sample_losses(prediction, noised.target, self.options.loss_type, threshold, mask)

    def validation_times(self, count: int) -> list[float]:
        """The inner points of ``count + 2`` evenly spread over the trained range: of all and 4 they are 200, 400, 600
        and 800."""
        low, high = self.options.min_timestep, self.options.max_timestep
        if low >= high:
            return [high]
        return [int(low + (high - low) * number / (count + 1)) for number in range(1, count + 1)]

    def sampler(self, name: str | None, steps: int) -> Sampler:
        self.check_sampler(name)
        name = name or self.samplers[0]
        kind, settings = SAMPLERS[ALIASES.get(name, name)]
        with library_imports():
            import diffusers
        scheduler: Any = getattr(diffusers, kind)(
            beta_start=BETAS[0],
            beta_end=BETAS[1],
            beta_schedule="scaled_linear",
            num_train_timesteps=TIMESTEPS,
            prediction_type=self.prediction,
            **settings,
        )
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler  # type: ignore[no-any-return]


# -------------------------------------------------------------------------------- formulas


def draw_timesteps(batch: int, options: LossSettings, device: torch.device) -> Tensor:
    """Timesteps (B,) int64, uniform in min_timestep..max_timestep - 1 (max_timestep itself if the range is empty)."""
    low, high = options.min_timestep, options.max_timestep
    if low >= high:
        return torch.full((batch,), high, device=device, dtype=torch.int64)
    return torch.randint(low, high, (batch,), device=device)


def whole_times(share: Tensor, low: int = 0, high: int = TIMESTEPS) -> Tensor:
    """Timesteps (B,) int64 of shares of all timesteps, in ``low``..``high`` - 1 (``high`` if the range is empty)."""
    return (
        (share * TIMESTEPS).long().clamp(low, high - 1) if low < high else (share * TIMESTEPS).round().long()
    )


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x_t = √ᾱ·x + √(1-ᾱ)·ε, (B, C, h, w)."""
    alpha_bar = schedule.alpha_bar[timesteps].view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise


def v_of(latents: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """v = √ᾱ·ε - √(1-ᾱ)·x, (B, C, h, w)."""
    alpha_bar = schedule.alpha_bar[timesteps].view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents


def huber_threshold(timesteps: Tensor, schedule: NoiseSchedule, options: LossSettings) -> Tensor:
    """Where the Huber losses turn from square to linear, (B,)."""
    c, scale = options.huber_c, options.huber_scale
    t = timesteps.float()
    if options.huber_schedule == "constant":
        return torch.full_like(t, c * scale)
    if options.huber_schedule == "exponential":
        # Filled on the device: a copied number would be waited for.
        return torch.full_like(t, c) ** (t / TIMESTEPS) * scale
    alpha_bar = schedule.alpha_bar[timesteps]
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    return (1 - c) / (1 + sigma) ** 2 + c


def loss_weights(
    timesteps: Tensor, schedule: NoiseSchedule, options: LossSettings, *, predicts_v: bool
) -> Tensor:
    """The weight of each sample's loss by its timestep, (B,) float32."""
    snr = schedule.snr[timesteps]
    weight = torch.ones_like(snr)
    if options.min_snr_gamma:
        clipped = snr.clamp(max=options.min_snr_gamma)
        weight = weight * clipped / (snr + 1 if predicts_v else snr)
    capped = snr.clamp(max=1000)
    if predicts_v and options.scale_v_pred_loss_like_noise_pred:
        weight = weight * capped / (capped + 1)
    if not predicts_v and options.v_pred_like_loss:
        weight = weight * (1 + options.v_pred_like_loss * (capped + 1) / capped)
    if options.debiased_estimation_loss:
        weight = weight * (1 / (capped + 1) if predicts_v else capped.rsqrt())
    return weight


# -------------------------------------------------------------------------------- options


def check_options(loss: LossSettings, v: bool | None) -> list[str]:
    """What the user should know of the options. ``v``: whether the base predicts v; None as long as it is not known.

    Raises ConfigError for options that mean nothing together.
    """
    check_noise(loss)
    if loss.scale_v_pred_loss_like_noise_pred and v is False:
        raise ConfigError(
            "scale_v_pred_loss_like_noise_pred: is for v-prediction, and this base predicts epsilon; leave it out"
        )
    if loss.v_pred_like_loss and v:
        raise ConfigError("v_pred_like_loss: is for epsilon models, and this base predicts v; leave it out")
    if loss.huber_c == 0 and loss.loss_type in ("huber", "smooth_l1"):
        raise ConfigError("huber_c: must be above 0")
    return [*range_notes(loss), *_notes(loss, v), *noise_notes(loss)]


def check_own_times(loss: LossSettings, prediction: str | None) -> list[str]:
    """What the user should know of the options of times. ``prediction``: None as long as the base is not known, when
    options of flow may still be meant.

    Raises ConfigError for options that this base has no use for.
    """
    if prediction is None:
        return []
    if name := next((name for name in FLOW_OPTIONS if getattr(loss, name) not in (None, False)), None):
        word = PREDICTIONS[prediction].word
        raise ConfigError(
            f"{name}: is for flow models, and this base is taken as one of {word}; give --flow_model if it is one"
        )
    return check_times(loss, OWN_SAMPLINGS)


def _notes(loss: LossSettings, v: bool | None) -> list[str]:
    notes = []
    if loss.zero_terminal_snr and v is False:
        notes.append(
            "zero_terminal_snr with epsilon: nothing can be learned at the last timestep; it is made for v-prediction"
        )
    if loss.huber_scale != 1 and loss.loss_type in ("huber", "smooth_l1") and loss.huber_schedule == "snr":
        notes.append("huber_scale is not used by huber_schedule snr")
    return notes
