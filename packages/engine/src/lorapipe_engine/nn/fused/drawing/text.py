"""CLIP's text encoders that are drawn with: layers without a backward pass, networks in slots."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from lorapipe_engine.nn import kernels
from lorapipe_engine.nn.fused.drawing.layers import DrawnPart, linear, norm_linear
from lorapipe_engine.nn.fused.drawing.slots import Slot
from lorapipe_engine.nn.fused.unet import split_text_layer


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
    rows = norm_linear(x, layer.layer_norm1, qkv)  # (B·N, 3·heads·D)
    parts = rows.view(batch, shape[1], 3, layer.self_attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = parts.unbind()
    # Of so few tokens every kernel of attention takes less than what chooses one.
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, heads, N, D)
    x = linear(attended.transpose(1, 2).reshape(x.shape), out, x)
    inner = norm_linear(x, layer.layer_norm2, first)
    active = x.new_empty(len(x), second.width)
    kernels.activate(kind, inner, active)
    return linear(active, second, x).view(shape)
