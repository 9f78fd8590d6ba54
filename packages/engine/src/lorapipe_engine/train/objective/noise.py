"""Noise of a training step, whatever the objective: drawn, shifted, made coarse, put on the latents; pure functions.

Latents x and noise ε are (B, C, h, w) float32. All draws come from torch's global streams in sd-scripts' order, so that
a seed gives a step. Offset noise: N. Guttenberg 2023; multi-resolution noise: J. Whitaker 2023; input perturbation:
Ning et al. 2023. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings import LossSettings


def draw_noise(latents: Tensor, options: LossSettings, levels: Sequence[float] | None = None) -> Tensor:
    """ε for a batch of scaled latents, with the offsets that the options ask for. Draws from the global stream.

    ``levels``: numbers in 0..1 for :func:`pyramid_noise`, drawn if not given. They decide shapes, so that a step with
    multires noise differs from the next in more than values.
    """
    noise = torch.randn_like(latents)
    if options.noise_offset:
        noise = offset_noise(latents, noise, options)
    if options.multires_noise_iterations:
        if levels is None:  # on the CPU, so that nothing waits for the device
            levels = torch.rand(options.multires_noise_iterations, device="cpu").tolist()
        noise = pyramid_noise(noise, options.multires_noise_discount, levels)
    return noise


def offset_noise(latents: Tensor, noise: Tensor, options: LossSettings) -> Tensor:
    """Shift each channel of the noise by one draw: ε + k·randn(B, C, 1, 1)."""
    strength = torch.full((1, 1, 1, 1), options.noise_offset or 0.0, device=noise.device)
    if options.noise_offset_random_strength:
        strength = strength * torch.rand(1, device=noise.device)
    if options.adaptive_noise_scale:
        mean = latents.mean(dim=(2, 3), keepdim=True).abs()
        strength = (strength + options.adaptive_noise_scale * mean).clamp(min=0)
    return noise + strength * torch.randn(*noise.shape[:2], 1, 1, device=noise.device)


def pyramid_noise(noise: Tensor, discount: float, draws: Sequence[float]) -> Tensor:
    """Add noise of coarser and coarser grids (multires), then bring the batch back to unit variance.

    One number of ``draws`` in 0..1 for each grid decides how much coarser it is: a factor 2 to 4 a level.
    """
    height, width = noise.shape[2:]
    for level, draw in enumerate(draws):
        ratio = (2 + 2 * draw) ** level
        size = max(1, int(height / ratio)), max(1, int(width / ratio))
        coarse = torch.randn(*noise.shape[:2], *size, device=noise.device)
        noise = noise + F.interpolate(coarse, (height, width), mode="bilinear") * discount**level
        if 1 in size:
            break
    return noise / noise.std()


def perturb(noise: Tensor, options: LossSettings) -> Tensor:
    """The noise that is put on the latents: ε + γ·randn (input perturbation); the target keeps ε."""
    if not options.ip_noise_gamma:
        return noise
    strength = torch.full((1,), options.ip_noise_gamma, device=noise.device)
    if options.ip_noise_gamma_random_strength:
        strength = strength * torch.rand(1, device=noise.device)
    return noise + strength * torch.randn_like(noise)


# -------------------------------------------------------------------------------- options


def check_noise(loss: LossSettings) -> None:
    """Raise ConfigError for options of the noise that mean nothing together."""
    if loss.adaptive_noise_scale and loss.noise_offset is None:
        raise ConfigError("adaptive_noise_scale: changes the strength of noise_offset, so give that too")


def noise_notes(loss: LossSettings) -> list[str]:
    """What the user should know of the noise."""
    if loss.noise_offset and loss.noise_offset > 0.2:
        return [f"noise_offset {loss.noise_offset:g} is strong; usual are 0.05 to 0.1, if at all"]
    return []
