"""What adapters do with a change besides multiplying it: dense changes beside a layer, and dropouts of rows."""

from __future__ import annotations

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


def apply_weight(base: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """``weight``, in the place of the layer's own and without a bias, on what the layer takes."""
    if isinstance(base, nn.Conv2d):
        return F.conv2d(x, weight, None, base.stride, base.padding, base.dilation)
    return F.linear(x, weight)


def kept_rows(count: int, dropouts: Dropouts, device: torch.device) -> Tensor:
    """0 for each output row of a change that is dropped, else 1, (count,): by ``dropouts.rank``, and all at once by
    ``dropouts.module``. As LyCORIS does it, what stays is not made stronger. Nothing waits for the device."""
    kept = torch.ones(count, device=device)
    if dropouts.rank:
        kept = kept * (torch.rand_like(kept) >= dropouts.rank)
    if dropouts.module:
        kept = kept * (torch.rand((), device=device) >= dropouts.module)
    return kept


def frozen_weight(base: nn.Module) -> Tensor:
    """The frozen weight in float32, also of a quantized layer."""
    if isinstance(base, QuantizedLinear | QuantizedConv):
        return base.form.unpack(base, torch.float32)
    weight: Tensor = base.weight  # type: ignore[assignment]
    return weight.detach().float()
