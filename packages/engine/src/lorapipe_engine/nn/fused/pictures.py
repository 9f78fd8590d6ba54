"""Pictures as rows, and what the input of a convolution has for a gradient."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorapipe_engine.nn import kernels

# Rows from which on one way is the faster one. For convolutions: turning a kernel around, since cuDNN's own input
# gradient runs at half the speed of its forward convolution. For query, key and value: their own products, which fill
# a card then, instead of putting their gradients side by side first.
ENOUGH_ROWS = 2048


def as_rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B·H·W, C), a view where the order is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_pictures(rows: Tensor, like: Tensor) -> Tensor:
    """(B·H·W, C) -> (B, C, H, W) in channels-last order; B, H, W of ``like``."""
    batch, _, height, width = like.shape
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)


def convolution_input(shape: torch.Size, conv: nn.Conv2d, dy: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the input of a convolution by ``weight``, of ``shape``; where that pays as a convolution with the
    kernel turned around. ``conv``: its size, stride and padding."""
    size, padding = conv.kernel_size[0], conv.padding
    whole = conv.stride == (1, 1) and conv.kernel_size == (3, 3) and padding == (1, 1) and conv.groups == 1
    if whole and dy.is_cuda and len(dy) * dy.shape[2] * dy.shape[3] >= ENOUGH_ROWS:
        return F.conv2d(dy, kernels.turned(weight), None, 1, size - 1 - int(padding[0]))
    # Only its shape and order are read. torch.nn.grad's own helper hands over one that has to be made contiguous first.
    like = torch.empty(shape, dtype=dy.dtype, device=dy.device, memory_format=torch.channels_last)
    own = (None, conv.stride, padding, conv.dilation, False, [0, 0], conv.groups)
    dx: Tensor = torch.ops.aten.convolution_backward(dy, like, weight, *own, [True, False, False])[0]
    return dx
