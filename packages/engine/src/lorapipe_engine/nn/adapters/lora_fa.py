"""LoRA-FA (arXiv:2308.03303): a LoRA whose ``lora_down`` stays as it was drawn. LoRA's files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lorapipe_engine.nn.adapters.lora import Lora
from lorapipe_engine.nn.base import Dropouts, Options, Size
from lorapipe_engine.nn.change import layer_shape


class LoraFa(Lora):
    """``lora_down`` is frozen at values of N(0, 2 / (in·k·k + rank)); only ``lora_up``, from zero, is trained."""

    frozen: ClassVar[tuple[str, ...]] = ("lora_down",)
    reads: ClassVar[frozenset[str]] = frozenset()
    arguments: ClassVar[Mapping[str, Callable[[str], Any]]] = {"rs_lora": Lora.arguments["rs_lora"]}

    @classmethod
    def create(cls, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> Self:
        layer_shape(base)
        adapter = cls(base, size.rank, size.alpha, dropouts, {})
        adapter.options = options
        adapter.lora_down.requires_grad_(False)
        if adapter.weight.device.type != "meta":
            inputs = adapter.lora_down[0].numel()
            nn.init.normal_(adapter.lora_down, std=math.sqrt(2 / (inputs + size.rank)))
        return adapter

    @classmethod
    def shapes(cls, layer: tuple[int, ...], size: Size, options: Options) -> dict[str, tuple[int, ...]]:  # noqa: ARG003
        return {"lora_up": Lora.shapes(layer, size, {})["lora_up"]}

    def short_rank(self) -> int:
        return 0 if self.dropouts.any else self.rank

    @classmethod
    def short_form(cls, rows: Sequence[Self], values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        up = values["lora_up"] * (rows[0].alpha / rows[0].rank)
        return values["lora_down"].flatten(2), up.flatten(2)

    def scale_(self, factor: Tensor) -> None:
        self.lora_up.data.mul_(factor)

    @classmethod
    def limit_(cls, rows: Sequence[Self], limit: float) -> Tensor:
        norms = cls.change_norms(rows)
        factors = limit / norms.clamp(min=limit)
        torch._foreach_mul_([row.lora_up.data for row in rows], list(factors.unbind()))
        return norms
