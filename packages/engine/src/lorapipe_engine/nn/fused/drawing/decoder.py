"""A VAE's decoder in half precision, for drawing alone.

What the residual blocks of a decoder add up goes beyond fp16's range in some VAEs (SDXL's is known for it), though all
that reads the sum is a group norm or linear. So the sum is kept at 1 / :data:`SMALLER` of its size, and so is what
stands between the two convolutions of a block: the weights that make them are that much smaller, and a norm's eps by
the square, norm(x / s; eps / s²) = norm(x; eps). That is exact but for numbers too small to matter, and leaves fp16 its
ten bits, where bf16 has seven.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

SMALLER = 32.0  # a power of two, so that no digit of a weight is lost


class HalfDecoder:
    """A copy of a VAE's decoder in ``dtype``, on the VAE's device. Make it before the VAE is fused."""

    def __init__(self, vae: Any, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.decoder: Any = deepcopy(vae.decoder)
        self._first: Any = deepcopy(getattr(vae, "post_quant_conv", None))
        if dtype == torch.float16:
            _make_smaller(self.decoder)
        for module in (self.decoder, self._first):
            if module is not None:
                nn.Module.to(module, dtype=dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents (B, C, h, w) float32 -> pixels (B, 3, H, W) float32 in about -1..1."""
        x = latents.to(self.dtype)
        if self._first is not None:
            x = self._first(x)
        pixels: Tensor = self.decoder(x)
        return pixels.float()


def fits_half(vae: Any) -> bool:
    """Whether a VAE's decoder is of the make that :class:`HalfDecoder` knows."""
    if type(getattr(vae, "decoder", None)).__name__ != "Decoder":
        return False
    kinds = {type(module).__name__ for module in vae.decoder.modules() if list(module.children())}
    return kinds <= _KNOWN and all(
        block.output_scale_factor == 1.0 and block.time_emb_proj is None
        for block in vae.decoder.modules()
        if type(block).__name__ == "ResnetBlock2D"
    )


_KNOWN = {"Decoder", "ModuleList", "UNetMidBlock2D", "UpDecoderBlock2D", "ResnetBlock2D", "Attention"} | {
    "Upsample2D"
}


@torch.no_grad()
def _make_smaller(decoder: Any) -> None:
    _shrink(decoder.conv_in)
    _widen(decoder.conv_norm_out)
    for module in decoder.modules():
        kind = type(module).__name__
        if kind == "ResnetBlock2D":
            _shrink(module.conv1)
            _shrink(module.conv2)
            _widen(module.norm1)
            _widen(module.norm2)
            if module.conv_shortcut is not None:
                _shrink(module.conv_shortcut, bias_alone=True)
        elif kind == "Attention":
            _shrink(module.to_out[0])
            _widen(module.group_norm)
        elif kind == "Upsample2D" and module.conv is not None:
            _shrink(module.conv, bias_alone=True)


def _shrink(layer: Any, *, bias_alone: bool = False) -> None:
    """Have a layer give 1 / SMALLER of its result, of its input or of that much less of it."""
    if not bias_alone:
        layer.weight.div_(SMALLER)
    if layer.bias is not None:
        layer.bias.div_(SMALLER)


def _widen(norm: nn.GroupNorm) -> None:
    """Have a norm give of 1 / SMALLER of its input what it gave of the input."""
    norm.eps /= SMALLER**2
