"""The training objective: schedule, targets, losses and their weights, as pure functions on tensors.

Latents x and noise ε are (B, 4, h, w) float32, timesteps t (B,) int64 in 0..999. Formulas: DDPM (Ho et al. 2020),
v-prediction (Salimans & Ho 2022), min-SNR (Hang et al. 2023), zero terminal SNR (Lin et al. 2023); the order of
the steps is sd-scripts', so that a run gives the field's results. Nothing here waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lorapipe_engine.settings import LossSettings

TIMESTEPS = 1000


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
        beta = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float32) ** 2
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


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule) -> Tensor:
    """x_t = √ᾱ·x + √(1-ᾱ)·ε, (B, 4, h, w)."""
    alpha_bar = schedule.alpha_bar[timesteps].view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise


def target_of(
    latents: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule, objective: LossSettings
) -> Tensor:
    """What the model should predict: ε, or v = √ᾱ·ε - √(1-ᾱ)·x. (B, 4, h, w)"""
    if not objective.v_parameterization:
        return noise
    alpha_bar = schedule.alpha_bar[timesteps].view(-1, 1, 1, 1)
    return alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * latents


def sample_losses(
    prediction: Tensor,
    target: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    objective: LossSettings,
    mask: Tensor | None = None,
) -> Tensor:
    """Loss of each sample before its weights, (B,) float32: element loss, times the mask, mean over C, h, w.

    ``mask`` is (B, 1, h, w) in 0..1; the mean is not renormalised by it.
    """
    loss = _element_loss(prediction.float(), target.float(), timesteps, schedule, objective)
    if mask is not None:
        loss = loss * mask
    return loss.mean(dim=(1, 2, 3))


def _element_loss(
    prediction: Tensor, target: Tensor, timesteps: Tensor, schedule: NoiseSchedule, objective: LossSettings
) -> Tensor:
    difference = prediction - target
    if objective.loss_type == "l2":
        return difference.square()
    if objective.loss_type == "l1":
        return difference.abs()
    delta = huber_threshold(timesteps, schedule, objective).view(-1, 1, 1, 1)
    bowl = (difference.square() + delta.square()).sqrt() - delta
    return 2 * delta * bowl if objective.loss_type == "huber" else 2 * bowl


def huber_threshold(timesteps: Tensor, schedule: NoiseSchedule, objective: LossSettings) -> Tensor:
    """Where the Huber losses turn from square to linear, (B,)."""
    c, scale = objective.huber_c, objective.huber_scale
    t = timesteps.float()
    if objective.huber_schedule == "constant":
        return torch.full_like(t, c * scale)
    if objective.huber_schedule == "exponential":
        # Filled on the device: a copied number would be waited for.
        return torch.full_like(t, c) ** (t / TIMESTEPS) * scale
    alpha_bar = schedule.alpha_bar[timesteps]
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    return (1 - c) / (1 + sigma) ** 2 + c


def loss_weights(timesteps: Tensor, schedule: NoiseSchedule, objective: LossSettings) -> Tensor:
    """The weight of each sample's loss by its timestep, (B,) float32."""
    snr = schedule.snr[timesteps]
    weight = torch.ones_like(snr)
    if objective.min_snr_gamma:
        clipped = snr.clamp(max=objective.min_snr_gamma)
        weight = weight * clipped / (snr + 1 if objective.v_parameterization else snr)
    capped = snr.clamp(max=1000)
    if objective.v_parameterization and objective.scale_v_pred_loss_like_noise_pred:
        weight = weight * capped / (capped + 1)
    if not objective.v_parameterization and objective.v_pred_like_loss:
        weight = weight * (1 + objective.v_pred_like_loss * (capped + 1) / capped)
    if objective.debiased_estimation_loss:
        weight = weight * (1 / (capped + 1) if objective.v_parameterization else capped.rsqrt())
    return weight
