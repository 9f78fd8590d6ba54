"""Stable Diffusion 1.x and 2.x: one text encoder, cross-attention alone."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.families.clip import ClipText
from lorapipe_engine.train.families.text import Conditioning, TextEncoder


class StableDiffusion(Family):
    """SD 1.x: CLIP-L, padded with EOS."""

    name = "sd1"
    pads: ClassVar[tuple[int | None, ...]] = (None,)

    def make_text(self, **settings: Any) -> TextEncoder:
        return ClipText(self.base.text_encoders, self.base.tokenizers, self.pads, **settings)

    def predict(
        self,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        geometry: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        states = conditioning.hidden.to(self.device, self.dtype)
        noisy, timesteps = noisy.to(self.device, self.dtype), timesteps.to(self.device)
        out: Tensor = self.denoiser(noisy, timesteps, states, return_dict=False)[0]
        return out.to(torch.float32)


class StableDiffusion2(StableDiffusion):
    """SD 2.x: OpenCLIP-H without its last layer, padded with the id 0."""

    name = "sd2"
    pads = (0,)
