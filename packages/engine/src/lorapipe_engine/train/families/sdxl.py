"""Stable Diffusion XL base: two text encoders, a pooled text vector and the picture's geometry."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.nn.sending import sent
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.families.clip import ClipPair
from lorapipe_engine.train.families.text import Conditioning, TextEncoder


class StableDiffusionXL(Family):
    """SDXL base: CLIP-L (padded with EOS) and OpenCLIP-bigG (padded with 0), states before the last layer."""

    name = "sdxl"

    def make_text(self, **settings: Any) -> TextEncoder:
        return ClipPair(self.base.text_encoders, self.base.tokenizers, (None, 0), **settings)

    def predict(
        self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, geometry: Tensor | None = None
    ) -> Tensor:
        if conditioning.pooled is None or geometry is None:
            raise ConfigError("SDXL needs the pooled text vector and the geometry of each picture")
        added = {
            "text_embeds": conditioning.pooled.to(self.device, self.dtype),
            # (B, 6) in float32: half precision holds no pixel counts. The UNet makes sinusoids of them.
            "time_ids": geometry.to(self.device, torch.float32),
        }
        states = conditioning.hidden.to(self.device, self.dtype)
        noisy, timesteps = noisy.to(self.device, self.dtype), timesteps.to(self.device)
        out: Tensor = self.denoiser(noisy, timesteps, states, added_cond_kwargs=added, return_dict=False)[0]
        return out.to(torch.float32)

    def plain_geometry(self, count: int, width: int, height: int) -> Tensor:
        row = [height, width, 0, 0, height, width]
        return sent(torch.tensor([row] * count, dtype=torch.float32), self.device)
