"""Frozen layers whose weights are kept in 8 bits (float8 e4m3) and computed with in the precision of what comes in.

For the backward pass a layer keeps its 8-bit weight, not the wider copy that it computed with, so memory stays low.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

HELD = torch.float8_e4m3fn
# Small layers at the ends of the models, through which their precision is told.
_WIDE = frozenset({"conv_in", "conv_out", "time_embedding", "add_embedding", "class_embedding"})


def hold_in_8_bits(root: nn.Module) -> int:
    """Turn the weights of all linear layers and convolutions in ``root`` into float8, in place; how many there were.

    Biases, norms, embeddings, and the layers at both ends of a UNet stay as they are.
    """
    count = 0
    for path, module in root.named_modules():
        if path.partition(".")[0] in _WIDE or type(module) not in _KINDS:
            continue
        module.__class__ = _KINDS[type(module)]
        weight = cast(nn.Parameter, module.weight)
        weight.data = weight.data.to(HELD)
        count += 1
    return count


def is_held(root: nn.Module) -> bool:
    """Whether any layer in ``root`` has its weight in 8 bits."""
    return any(isinstance(module, Linear8 | Conv8) for module in root.modules())


class Linear8(nn.Linear):
    """A linear layer with a frozen float8 weight: (..., in) -> (..., out)."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        out: Tensor = _Linear.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return out


class Conv8(nn.Conv2d):
    """A convolution with a frozen float8 weight: (B, in, H, W) -> (B, out, H', W')."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        out: Tensor = _Conv.apply(input, self.weight, self.bias, self)  # type: ignore[no-untyped-call]
        return out


_KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: Linear8, nn.Conv2d: Conv8}


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        context.save_for_backward(weight)
        return F.linear(x, weight.to(x.dtype), bias)

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = context.saved_tensors
        return grads[0] @ weight.to(grads[0].dtype), None, None


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Conv2d) -> Tensor:
        context.save_for_backward(weight)
        context.shape, context.layer = x.shape, layer
        return F.conv2d(
            x, weight.to(x.dtype), bias, layer.stride, layer.padding, layer.dilation, layer.groups
        )

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = context.saved_tensors
        layer = context.layer
        grad: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
            context.shape,
            weight.to(grads[0].dtype),
            grads[0],
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )
        return grad, None, None, None
