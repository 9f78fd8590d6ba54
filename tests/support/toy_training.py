"""A toy algorithm, second file: how it is trained. Its gain is learned as a logarithm, so that what a file holds is
not what is trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorapipe_engine.nn.base import Adapter, Dropouts, Options, Size


def _gain(text: str) -> float:
    value = float(text) if text.replace(".", "", 1).isdigit() else 0.0
    if value <= 0:
        raise ValueError("a number above 0")
    return value


class Toy(Adapter):
    """``y = W x + multiplier · (alpha / rank) · left(gain · right(x))``."""

    faster: ClassVar[frozenset[str]] = frozenset({"left"})
    needs: ClassVar[frozenset[str]] = frozenset({"toy_left", "toy_gain", "toy_right"})
    arguments: ClassVar[Mapping[str, Callable[[str], Any]]] = {"gain": _gain}

    @classmethod
    def create(cls, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> Self:
        return cls(base, size, dropouts, options)

    @classmethod
    def shapes(cls, layer: tuple[int, ...], size: Size, options: Options) -> dict[str, tuple[int, ...]]:
        return {"right": (size.rank, *layer[1:]), "log_gain": (size.rank,), "left": (layer[0], size.rank)}

    def __init__(self, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> None:
        super().__init__(base)
        self.rank, self.alpha, self.options, self.dropouts = size.rank, size.alpha, options, dropouts
        shapes = self.shapes(tuple(self.weight.shape), size, options)
        device = self.weight.device
        self.right = nn.Parameter(torch.empty(shapes["right"], device=device))
        self.log_gain = nn.Parameter(
            torch.full(shapes["log_gain"], math.log(options.get("gain", 1.0)), device=device)
        )
        self.left = nn.Parameter(torch.zeros(shapes["left"], device=device))
        if device.type != "meta":
            nn.init.kaiming_uniform_(self.right, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Works on what the base module takes: (..., in) or (B, in, H, W)."""
        out: Tensor = self.base(x)
        scale = self.multiplier * self.alpha / self.rank
        right = self.right.to(x.dtype)
        gained = (self.left * self.log_gain.exp() * scale).to(x.dtype)
        if isinstance(self.base, nn.Conv2d):
            hidden = F.conv2d(x, right, None, self.base.stride, self.base.padding)
            return out + F.conv2d(hidden, gained[:, :, None, None])
        return out + F.linear(F.linear(x, right), gained)

    def delta(self) -> Tensor:
        product = (self.left * self.log_gain.exp()) @ self.right.flatten(1)
        return product.reshape(self.weight.shape) * (self.alpha / self.rank)

    def file_tensors(self) -> dict[str, Tensor]:
        return {
            "toy_left": self.left,
            "toy_gain": self.log_gain.exp(),
            "toy_right": self.right,
            "alpha": torch.tensor(self.alpha),
        }

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        self.left.copy_(tensors["toy_left"])
        self.log_gain.copy_(tensors["toy_gain"].log())
        self.right.copy_(tensors["toy_right"])

    def scale_(self, factor: Tensor) -> None:
        self.left.data.mul_(factor)
