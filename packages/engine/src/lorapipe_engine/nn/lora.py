"""LoRA on linear and convolution layers (Hu et al. 2021, arXiv:2106.09685; kohya's file layout)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorapipe_engine.nn.base import NO_DROPOUT, Adapter, Dropouts, Options, Size


class Lora(Adapter):
    """``y = W x + multiplier · (alpha / rank) · up(down(x))``.

    For a linear layer ``lora_down`` is (rank, in) and ``lora_up`` (out, rank). For a convolution ``lora_down``
    is (rank, in, k, k) with the layer's stride and padding and ``lora_up`` (out, rank, 1, 1). ``lora_up`` starts
    at zero, so a new network changes nothing.
    """

    faster: ClassVar[frozenset[str]] = frozenset({"lora_up"})
    needs: ClassVar[frozenset[str]] = frozenset({"lora_down.weight", "lora_up.weight"})
    drops: ClassVar[frozenset[str]] = frozenset({"element", "rank", "module"})
    low_rank: ClassVar[bool] = True

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropouts: Dropouts = NO_DROPOUT) -> None:
        super().__init__(base)
        self.rank = rank
        self.alpha = alpha or float(rank)
        self.dropouts = dropouts
        if not isinstance(base, nn.Linear | nn.Conv2d):
            raise TypeError(f"no LoRA for a {type(base).__name__}")
        shapes = self.shapes(tuple(base.weight.shape), Size(rank, alpha), {})
        device = self.weight.device
        self.lora_down = nn.Parameter(torch.empty(shapes["lora_down"], device=device, dtype=torch.float32))
        self.lora_up = nn.Parameter(torch.zeros(shapes["lora_up"], device=device, dtype=torch.float32))
        if device.type != "meta":
            nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    @classmethod
    def create(cls, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> Self:  # noqa: ARG003
        return cls(base, size.rank, size.alpha, dropouts)

    @classmethod
    def shapes(cls, layer: tuple[int, ...], size: Size, options: Options) -> dict[str, tuple[int, ...]]:  # noqa: ARG003
        ones = (1,) * (len(layer) - 2)
        return {"lora_down": (size.rank, *layer[1:]), "lora_up": (layer[0], size.rank, *ones)}

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

    def scale_(self, factor: Tensor) -> None:
        root = factor.sqrt()
        self.lora_up.data.mul_(root)
        self.lora_down.data.mul_(root)

    def change_norm(self) -> Tensor:
        return self.change_norms([self])[0]

    @classmethod
    def change_norms(cls, rows: Sequence[Self]) -> Tensor:
        up, down = (
            torch.stack([getattr(row, role).data for row in rows]) for role in ("lora_up", "lora_down")
        )
        return _norms(up, down, rows[0].alpha / rows[0].rank)

    @classmethod
    def limit_(cls, rows: Sequence[Self], limit: float) -> Tensor:
        ups, downs = [row.lora_up.data for row in rows], [row.lora_down.data for row in rows]
        up, down = torch.stack(ups), torch.stack(downs)  # (N, out, r, ...), (N, r, in, ...)
        norms = _norms(up, down, rows[0].alpha / rows[0].rank)
        factor = (limit / norms.clamp(min=limit)).sqrt()
        torch._foreach_copy_(ups, list((up * _broadcast(factor, up)).unbind()))
        torch._foreach_copy_(downs, list((down * _broadcast(factor, down)).unbind()))
        return norms

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


def _drop_ranks(hidden: Tensor, probability: float, axis: int) -> Tensor:
    """Zero whole rank channels, drawn per sample. ``hidden`` is (B, ..., r) or (B, r, H, W)."""
    shape = [1] * hidden.dim()
    shape[0], shape[axis] = hidden.shape[0], hidden.shape[axis]
    keep = torch.rand(shape, device=hidden.device) > probability
    return hidden * keep.to(hidden.dtype)


def _norms(up: Tensor, down: Tensor, scale: float) -> Tensor:
    """‖scale · UD‖ of (N, out, r, ...) and (N, r, in, ...), by ‖UD‖² = Σ (UᵀU) ∘ (DDᵀ): two r x r matrices in place of
    one as large as the layer."""
    flat_up, flat_down = up.flatten(2), down.flatten(2)
    product = (flat_up.mT @ flat_up) * (flat_down @ flat_down.mT)
    return product.sum(dim=(1, 2)).clamp(min=0).sqrt() * abs(scale)


def _broadcast(factor: Tensor, like: Tensor) -> Tensor:
    return factor.view(-1, *[1] * (like.dim() - 1))
