"""DyLoRA (arXiv:2210.07558): a LoRA whose first ranks are a good LoRA of that rank by themselves. LoRA's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.nn.adapters.lora import Lora
from lorapipe_engine.nn.base import Dropouts, Options, Size
from lorapipe_engine.nn.change import layer_shape
from lorapipe_engine.nn.options import whole


class DyLora(Lora):
    """Ranks go by blocks of ``unit``. Every forward of training draws a block: those above it are left out, those below
    it take part but are not trained. The change is always scaled by alpha / rank, as a file's reader does it.

    Raises ConfigError for a rank that ``unit`` does not divide.
    """

    draws: ClassVar[bool] = True
    drops: ClassVar[frozenset[str]] = frozenset({"module"})
    reads: ClassVar[frozenset[str]] = frozenset()
    arguments: ClassVar[Mapping[str, Callable[[str], Any]]] = {"unit": whole, "block_size": whole}

    @classmethod
    def create(cls, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> Self:
        layer_shape(base)
        adapter = cls(base, size.rank, size.alpha, dropouts, options)
        if size.rank % adapter.unit:
            raise ConfigError(f"dylora: unit {adapter.unit} does not divide the rank {size.rank}")
        return adapter

    @classmethod
    def shapes(cls, layer: tuple[int, ...], size: Size, options: Options) -> dict[str, tuple[int, ...]]:  # noqa: ARG003
        return Lora.shapes(layer, size, {})

    @property
    def unit(self) -> int:
        """Ranks in a block."""
        return int(self.options.get("unit") or self.options.get("block_size") or 1)

    def forward(self, x: Tensor) -> Tensor:
        """Works on what the base module takes: (..., in) or (B, in, H, W)."""
        if not self.training:
            return super().forward(x)
        # Drawn on the device and used as masks: nothing waits for it.
        drawn = torch.randint(self.rank // self.unit, (), device=x.device)
        block = torch.arange(self.rank, device=x.device) // self.unit
        there, trained = (block <= drawn).to(torch.float32), block == drawn
        down = torch.where(_along(trained, self.lora_down, 0), self.lora_down, self.lora_down.detach())
        up = torch.where(_along(trained, self.lora_up, 1), self.lora_up, self.lora_up.detach())
        up = up * _along(there, up, 1) * (self.multiplier * self.alpha / self.rank)
        if self.dropouts.module:
            up = up * (torch.rand((), device=x.device) >= self.dropouts.module)
        hidden = self._project(x, down.to(x.dtype), first=True)
        out: Tensor = self.base(x)
        if isinstance(self.base, nn.Conv2d):
            return out + F.conv2d(hidden, up.to(x.dtype))
        return out + F.linear(hidden, up.to(x.dtype))

    def short_rank(self) -> int:
        return 0 if self.dropouts.any else self.rank

    @classmethod
    def short_form(cls, rows: Sequence[Self], values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Every adapter draws a block, for all passes until the factors are made again."""
        like = rows[0]
        down, up = values["lora_down"].flatten(2), values["lora_up"].flatten(2)
        drawn = torch.randint(like.rank // like.unit, (len(rows), 1), device=down.device)
        block = torch.arange(like.rank, device=down.device) // like.unit
        there, trained = (block <= drawn).to(down.dtype), block == drawn  # (N, r)
        down = torch.where(trained[:, :, None], down, down.detach())
        up = torch.where(trained[:, None, :], up, up.detach())
        return down, up * (there * (like.alpha / like.rank))[:, None, :]


def _along(ranks: Tensor, like: Tensor, axis: int) -> Tensor:
    shape = [1] * like.dim()
    shape[axis] = len(ranks)
    return ranks.view(shape)
