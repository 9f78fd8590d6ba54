"""What the time adds to the residual blocks of a UNet, for all of them in one product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TimeShifts:
    """Shifts of diffusers' residual blocks: their projection of the time, and the bias of their first convolution where
    that is frozen.

    The projections' weights become views of one matrix. None of them is trained.
    """

    def __init__(self, blocks: Sequence[Any]) -> None:
        projections = [block.time_emb_proj for block in blocks]
        self._outs = [len(layer.weight) for layer in projections]
        self._weight = torch.cat([layer.weight.detach() for layer in projections])
        self._bias = torch.cat([_with_convolution(b, b.time_emb_proj.bias).detach() for b in blocks])
        for layer, view in zip(projections, torch.split(self._weight, self._outs), strict=True):
            layer.weight.data = view
        self._places = {id(block): place for place, block in enumerate(blocks)}
        self._time: Tensor | None = None
        self._found: tuple[Tensor, ...] = ()

    def of(self, block: Any, time: Tensor) -> Tensor:
        """The shift of a block (B, out), from the embedded time (B, T)."""
        if time.requires_grad:
            return _with_convolution(block, block.time_emb_proj(F.silu(time)))
        if self._time is not time:
            self._time = time
            self._found = torch.split(F.linear(F.silu(time), self._weight, self._bias), self._outs, dim=1)
        return self._found[self._places[id(block)]]


def _with_convolution(block: Any, shift: Tensor) -> Tensor:
    conv = block.conv1
    return shift + conv.bias if isinstance(conv, nn.Conv2d) and conv.bias is not None else shift
