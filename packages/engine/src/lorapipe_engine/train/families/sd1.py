"""Stable Diffusion 1.x and 2.x: one text encoder, cross-attention alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lorapipe_engine.train.families.base import Conditioning, Family
from lorapipe_engine.train.families.clip import encode_sd


class StableDiffusion(Family):
    """SD 1.x: CLIP-L, padded with EOS."""

    name = "sd1"
    pads: ClassVar[tuple[int | None, ...]] = (None,)

    def encode_text(
        self,
        ids: Sequence[Tensor],
        *,
        clip_skip: int | None = None,
        weights: Sequence[Tensor] | None = None,
    ) -> Conditioning:
        self.wake_text()
        hidden = encode_sd(self.text_encoders[0], ids[0].to(self.device), clip_skip)
        if weights is not None:
            hidden = hidden * weights[0].to(hidden)[..., None]
        return Conditioning(hidden)

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        geometry: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        states = conditioning.hidden.to(self.device, self.dtype)
        noisy, timesteps = noisy.to(self.device, self.dtype), timesteps.to(self.device)
        out: Tensor = self.unet(noisy, timesteps, states, return_dict=False)[0]
        return out.to(torch.float32)


class StableDiffusion2(StableDiffusion):
    """SD 2.x: OpenCLIP-H without its last layer, padded with the id 0."""

    name = "sd2"
    pads = (0,)
