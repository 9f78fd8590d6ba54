"""CLIP's text encoders that are drawn with: layers without a backward pass, networks in slots."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lorapipe_engine.nn import kernels
from lorapipe_engine.nn.fused.drawing.layers import DrawnPart, linear, norm_linear
from lorapipe_engine.nn.fused.drawing.slots import Slot
from lorapipe_engine.nn.fused.unet import attend, split_text_layer


class DrawnText(DrawnPart):
    """Frozen text encoders of any make; the layers of CLIP's are fused."""

    def __init__(self, encoders: Iterable[nn.Module]) -> None:
        super().__init__()
        for encoder in encoders:
            for module in encoder.modules():
                if type(module).__name__ == "CLIPEncoderLayer":
                    self._fuse(module)

    def _fuse(self, layer: Any) -> None:
        kind, linears = split_text_layer(layer)
        if kind is None or any(type(one) is not nn.Linear for one in linears):
            return
        slots = [self._slot(Slot(layers)) for layers in (linears[:3], *([one] for one in linears[3:]))]
        self._replace(layer, partial(_text_layer, layer, slots, kind))


def _text_layer(
    layer: Any, slots: list[Slot], kind: int, hidden_states: Tensor, *_args: Any, **_more: Any
) -> Tensor:
    """``hidden_states`` (B, N, C). The mask is the causal one: no prompt is padded with anything that is hidden."""
    batch, shape = len(hidden_states), hidden_states.shape
    qkv, out, first, second = slots
    x = hidden_states.reshape(-1, shape[-1])
    q, k, v = torch.split(norm_linear(x, layer.layer_norm1, qkv), qkv.outs, dim=1)
    x = linear(attend(q, k, v, batch, layer.self_attn.num_heads, causal=True), out, x)
    inner = norm_linear(x, layer.layer_norm2, first)
    active = x.new_empty(len(x), second.width)
    kernels.activate(kind, inner, active)
    return linear(active, second, x).view(shape)
