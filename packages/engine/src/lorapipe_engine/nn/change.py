"""What adapters do with a change besides multiplying it: dense changes beside a layer, and dropouts of rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorapipe_engine.nn.base import Dropouts
from lorapipe_engine.nn.quantize import QuantizedConv, QuantizedLinear


def parameter(shape: tuple[int, ...], device: torch.device) -> nn.Parameter:
    """A float32 parameter of zeros."""
    return nn.Parameter(torch.zeros(shape, device=device, dtype=torch.float32))


def layer_shape(base: nn.Module) -> tuple[int, ...]:
    """Shape of the weight of a linear layer or convolution. Raises TypeError for any other layer."""
    if not isinstance(base, nn.Linear | nn.Conv2d):
        raise TypeError(f"no network on a {type(base).__name__}")
    return tuple(base.weight.shape)


def apply_weight(base: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``weight`` and ``bias``, in the place of the layer's own, on what the layer takes."""
    if isinstance(base, nn.Conv2d):
        return F.conv2d(x, weight, bias, base.stride, base.padding, base.dilation)
    return F.linear(x, weight, bias)


def kept_rows(count: int, dropouts: Dropouts, device: torch.device) -> Tensor:
    """0 for each output row of a change that is dropped, else 1, (count,): by ``dropouts.rank``, and all at once by
    ``dropouts.module``. As in LyCORIS, what stays is made stronger only where ``dropouts.rank_scale`` asks for it.
    Nothing waits for the device."""
    kept = torch.ones(count, device=device)
    if dropouts.rank:
        kept = kept * (torch.rand_like(kept) >= dropouts.rank)
        if dropouts.rank_scale:
            kept = share_out(kept)
    if dropouts.module:
        kept = kept * (torch.rand((), device=device) >= dropouts.module)
    return kept


def kept_ranks(
    shape: Sequence[int], axis: int, dropouts: Dropouts, device: torch.device
) -> tuple[Tensor, float]:
    """0 for each rank channel of a sample that ``dropouts.rank`` drops, else what it is multiplied with, in ``shape``,
    which has the ranks on an axis; and a number to divide all of them by. As in sd-scripts that is 1 - p, unless
    ``dropouts.rank_scale`` says otherwise: with True a sample's ranks are divided by the share of them that is kept,
    with False nothing is made stronger. Nothing waits for the device."""
    kept = (torch.rand(shape, device=device) > dropouts.rank).float()
    if dropouts.rank_scale is None:
        return kept, 1 - dropouts.rank
    return (share_out(kept, axis) if dropouts.rank_scale else kept), 1.0


def share_out(kept: Tensor, axis: int = 0) -> Tensor:
    """A mask of zeros and ones divided by its mean along an axis; where nothing is kept it stays zero."""
    return kept / kept.mean(dim=axis, keepdim=True).clamp(min=1 / kept.shape[axis])


def frozen_weight(base: nn.Module) -> Tensor:
    """The frozen weight in float32, also of a quantized layer."""
    if isinstance(base, QuantizedLinear | QuantizedConv):
        return base.form.unpack(base, torch.float32)
    weight: Tensor = base.weight  # type: ignore[assignment]
    return weight.detach().float()
