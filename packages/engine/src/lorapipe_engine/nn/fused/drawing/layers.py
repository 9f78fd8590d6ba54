"""What the parts of a model that is drawn with have in common: fused forwards in place, and layers in slots."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lorapipe_engine.nn import kernels
from lorapipe_engine.nn.fused.drawing.slots import AnySlot, Slot, Slots

Forward = Callable[..., Any]


class DrawnPart:
    """A frozen part of a model whose blocks are given fused forwards, in place; with ``active`` False they run their
    own. Blocks of another make stay as they are."""

    def __init__(self) -> None:
        self.active = True
        self._slots: list[AnySlot] = []

    @cached_property
    def slots(self) -> Slots:
        """Where the factors of networks go."""
        return Slots(self._slots)

    def _slot(self, slot: Any) -> Any:
        self._slots.append(slot)
        return slot

    def _replace(self, module: Any, forward: Forward) -> None:
        own: Forward = module.forward

        def chosen(*args: Any, **more: Any) -> Any:
            return forward(*args, **more) if self.active else own(*args, **more)

        module.forward = chosen


def product(rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """``matrix`` (out, in) on rows (N, in), plus ``bias`` (out,)."""
    return rows @ matrix.mT if bias is None else torch.addmm(bias, rows, matrix.mT)


def linear(x: Tensor, slot: Slot, residual: Tensor | None = None) -> Tensor:
    """The layers on x (N, in) side by side, plus ``residual`` (N, out)."""
    if slot.rank:
        return kernels.lift(product(x, slot.left, slot.left_bias), slot.up.mT, residual)[0]
    if residual is None:
        return product(x, slot.weight, slot.bias)
    return kernels.add_bias(x @ slot.weight.mT, slot.bias, residual)


def norm_linear(x: Tensor, norm: nn.LayerNorm, slot: Slot) -> Tensor:
    """The layers on the norm of x (N, in), side by side."""
    both = x.new_empty(len(x), slot.width + slot.rank)
    normed = both[:, : slot.width]
    kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, normed)
    if slot.rank:
        torch.mm(normed, slot.down.mT, out=both[:, slot.width :])
    return product(both, slot.joined, slot.bias)
