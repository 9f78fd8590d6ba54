"""Convolutions of k x k with a LoRA, as one convolution: [W; A] are its kernels, and what A gives is lifted on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorapipe_engine.nn import kernels
from lorapipe_engine.nn.adapters.lora import Lora
from lorapipe_engine.nn.base import counts_whole
from lorapipe_engine.nn.fused.pictures import as_pictures, as_rows, convolution_input
from lorapipe_engine.nn.kernels.gradients import add_product

MARK = "trained_convolution"
STEP = 16  # ranks are padded to this, for the matrix units


class TrainedConvolution:
    """A convolution W (out, in, k, k) with factors A (r, in, k, k) and B (out, r): ``kernels`` (out + R, in, k, k) =
    [W; A] in channels-last order, of which W becomes a view, and ``up`` (out, R) = sB; both as of the last
    :meth:`TrainedConvolutions.refresh`."""

    def __init__(self, adapter: Lora) -> None:
        base = adapter.base
        assert isinstance(base, nn.Conv2d)
        self.adapter, self.base = adapter, base
        self.rank = -(-adapter.rank // STEP) * STEP
        weight = base.weight.detach()
        self.out, into, *size = weight.shape
        whole = weight.new_zeros(self.out + self.rank, into, *size)
        self.kernels = whole.to(memory_format=torch.channels_last)
        self.kernels[: self.out] = weight
        base.weight.data = self.kernels[: self.out]
        self.down = self.kernels[self.out : self.out + adapter.rank]
        self.up = weight.new_zeros(self.out, self.rank)
        self.scale = adapter.alpha / adapter.rank
        self.trained = [adapter.lora_down, adapter.lora_up]
        object.__setattr__(adapter, MARK, self)

    @property
    def ready(self) -> bool:
        """Whether the whole change counts now: nothing is dropped, and the network is on."""
        return counts_whole(self.adapter)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """On x (B, in, H, W), plus ``residual``."""
        out: Tensor = _Convolved.apply(x, self, residual, *self.trained)  # type: ignore[no-untyped-call]
        return out

    def add_gradients(self, x: Tensor, hidden: Tensor, dy: Tensor, dhidden: Tensor) -> None:
        """``x`` (B, in, H, W), ``dhidden`` (B, R, h, w); ``hidden`` (N, R) and ``dy`` (N, out) are rows."""
        down, up = (parameter.grad for parameter in self.trained)
        if down is None or up is None:
            raise RuntimeError("a gradient buffer was taken away")
        base, rank = self.base, self.adapter.rank
        own = (None, base.stride, base.padding, base.dilation, False, [0, 0], 1)
        kernel = self.kernels[self.out :]
        gradient = torch.ops.aten.convolution_backward(dhidden, x, kernel, *own, [False, True, False])[1]
        down.add_(gradient[:rank])
        add_product(up.flatten(1), dy.mT, hidden[:, :rank], self.scale)


class TrainedConvolutions:
    """The convolutions of a network, brought up to date together."""

    def __init__(self, layers: Sequence[TrainedConvolution]) -> None:
        self.layers = list(layers)
        ups = [layer.adapter.lora_up.detach().flatten(1) for layer in layers]
        targets = [layer.up[:, : layer.adapter.rank] for layer in layers]
        self._copy = kernels.many_copies(ups, targets, [layer.scale for layer in layers])

    def refresh(self) -> None:
        """Copy the factors as they are now, B times its scale."""
        if self.layers:
            self._copy.run()
            downs = [layer.adapter.lora_down.detach() for layer in self.layers]
            torch._foreach_copy_([layer.down for layer in self.layers], downs)


def can_convolve(module: nn.Module) -> bool:
    """Whether a module is a LoRA and nothing else on a convolution of more than one pixel."""
    if type(module) is not Lora or type(module.base) is not nn.Conv2d:
        return False
    base = module.base
    plain = base.groups == 1 and base.dilation == (1, 1) and base.padding_mode == "zeros"
    return plain and max(base.kernel_size) > 1 and not isinstance(base.padding, str)


def trained_convolution(layer: nn.Module, x: Tensor) -> TrainedConvolution | None:
    """A layer's place among the trained convolutions, while its whole change counts on inputs like x; else None."""
    place: TrainedConvolution | None = vars(layer).get(MARK)
    return place if place is not None and place.ready and x.dtype == place.kernels.dtype else None


class _Convolved(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: TrainedConvolution, residual: Tensor | None, *_trained: Tensor
    ) -> Tensor:
        both = F.conv2d(x, layer.kernels, None, layer.base.stride, layer.base.padding)
        both = both.contiguous(memory_format=torch.channels_last)
        more = None if residual is None else as_rows(residual)
        out, hidden = kernels.lift(as_rows(both), layer.up.mT, more, bias=layer.base.bias)
        ctx.layer = layer
        ctx.save_for_backward(x, hidden)
        return as_pictures(out, both)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, hidden = ctx.saved_tensors
        layer: TrainedConvolution = ctx.layer
        rows, dx = as_rows(dy.contiguous(memory_format=torch.channels_last)), None
        dhidden = rows @ layer.up
        if ctx.needs_input_grad[0]:
            both = as_pictures(torch.cat([rows, dhidden], dim=1), dy)
            dx = convolution_input(x.shape, layer.base, both, layer.kernels)
        layer.add_gradients(x, hidden, rows, as_pictures(dhidden, dy))
        return dx, None, dy if ctx.needs_input_grad[2] else None, None, None
