"""LoRA on linear and convolution layers (Hu et al. 2021, arXiv:2106.09685; kohya's file layout)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorapipe_engine.nn.base import NO_DROPOUT, Adapter, Dropouts


class Lora(Adapter):
    """``y = W x + multiplier · (alpha / rank) · up(down(x))``.

    For a linear layer ``lora_down`` is (rank, in) and ``lora_up`` (out, rank). For a convolution ``lora_down``
    is (rank, in, k, k) with the layer's stride and padding and ``lora_up`` (out, rank, 1, 1). ``lora_up`` starts
    at zero, so a new network changes nothing.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropouts: Dropouts = NO_DROPOUT) -> None:
        super().__init__(base)
        self.rank = rank
        self.alpha = alpha or float(rank)
        self.dropouts = dropouts
        down, up = factor_shapes(base, rank)
        device = self.weight.device
        self.lora_down = nn.Parameter(torch.empty(down, device=device, dtype=torch.float32))
        self.lora_up = nn.Parameter(torch.zeros(up, device=device, dtype=torch.float32))
        if device.type != "meta":
            nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Works on what the base module takes: (..., in) or (B, in, H, W)."""
        out: Tensor = self.base(x)
        p = self.dropouts
        hidden = self._project(x, self.lora_down.to(x.dtype), first=True)
        scale = self.multiplier * self.alpha / self.rank
        if self.training and p.element:
            hidden = F.dropout(hidden, p.element)
        if self.training and p.rank:
            hidden, scale = _drop_ranks(hidden, p.rank, self._rank_axis), scale / (1 - p.rank)
        if self.training and p.module:
            # Times zero instead of a branch in Python: nothing waits for the device, and a graph can hold it.
            hidden = hidden * (torch.rand((), device=x.device) >= p.module).to(x.dtype)
        return self._add(out, hidden, scale)

    def _add(self, out: Tensor, hidden: Tensor, scale: float) -> Tensor:
        """``out + scale · up(hidden)``, for linear layers in one product, which rounds once."""
        up = self.lora_up.to(hidden.dtype)
        if isinstance(self.base, nn.Conv2d) or out.dtype != hidden.dtype:
            return out + self._project(hidden * scale, up, first=False)
        rows = torch.addmm(out.reshape(-1, up.shape[0]), hidden.reshape(-1, up.shape[1]), up.mT, alpha=scale)
        return rows.view_as(out)

    def delta(self) -> Tensor:
        up, down = self.lora_up.float(), self.lora_down.float()
        product = up.flatten(1) @ down.flatten(1)
        return product.reshape(self.weight.shape) * (self.alpha / self.rank)

    def file_tensors(self) -> dict[str, Tensor]:
        return {
            "lora_down.weight": self.lora_down,
            "lora_up.weight": self.lora_up,
            "alpha": torch.tensor(self.alpha, dtype=torch.float32),
        }

    @property
    def _rank_axis(self) -> int:
        return 1 if isinstance(self.base, nn.Conv2d) else -1

    def _project(self, x: Tensor, weight: Tensor, *, first: bool) -> Tensor:
        conv = self.base
        if not isinstance(conv, nn.Conv2d):
            return F.linear(x, weight)
        if not first:
            return F.conv2d(x, weight)
        return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation)


def factor_shapes(base: nn.Module, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of ``lora_down`` and ``lora_up`` for a module. Raises TypeError for any other layer."""
    if isinstance(base, nn.Linear):
        return (rank, base.in_features), (base.out_features, rank)
    if isinstance(base, nn.Conv2d):
        kernel = (base.kernel_size[0], base.kernel_size[1])
        return (rank, base.in_channels, *kernel), (base.out_channels, rank, 1, 1)
    raise TypeError(f"no LoRA for a {type(base).__name__}")


def _drop_ranks(hidden: Tensor, probability: float, axis: int) -> Tensor:
    """Zero whole rank channels, drawn per sample. ``hidden`` is (B, ..., r) or (B, r, H, W)."""
    shape = [1] * hidden.dim()
    shape[0], shape[axis] = hidden.shape[0], hidden.shape[axis]
    keep = torch.rand(shape, device=hidden.device) > probability
    return hidden * keep.to(hidden.dtype)
