"""Stable Diffusion XL base: two text encoders, a pooled text vector and the picture's geometry."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.train.families.base import Conditioning, Family
from lorapipe_engine.train.families.clip import encode_sdxl


class StableDiffusionXL(Family):
    """SDXL base: CLIP-L (padded with EOS) and OpenCLIP-bigG (padded with 0), states before the last layer."""

    name = "sdxl"
    pads = (None, 0)

    def encode_text(
        self,
        ids: Sequence[Tensor],
        *,
        clip_skip: int | None = None,  # noqa: ARG002
        weights: Sequence[Tensor] | None = None,
    ) -> Conditioning:
        """As the base class says; ``clip_skip`` means nothing for SDXL and is not looked at."""
        self.wake_text()
        both = [row.to(self.device) for row in ids]
        hidden, pooled = encode_sdxl(self.text_encoders, both, self.tokenizers[1].eos)
        if weights is not None:
            # Both encoders share their tokens, so the first one's weights hold for the joined channels.
            hidden = hidden * weights[0].to(hidden)[..., None]
        return Conditioning(hidden, pooled)

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
        out: Tensor = self.unet(noisy, timesteps, states, added_cond_kwargs=added, return_dict=False)[0]
        return out.to(torch.float32)

    def plain_geometry(self, count: int, width: int, height: int) -> Tensor:
        row = [height, width, 0, 0, height, width]
        return torch.tensor([row] * count, dtype=torch.float32, device=self.device)
