"""Whole differences of weights beside frozen layers, as the fused operations read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorapipe_engine.nn import kernels
from lorapipe_engine.nn.adapters.full import Full
from lorapipe_engine.nn.base import counts_whole
from lorapipe_engine.nn.kernels.gradients import add_product

MARK = "trained_difference"


class TrainedDifference:
    """A linear layer or 1x1 convolution W (out, in) with a trained difference; ``change`` (out, in) is that in W's
    dtype, as of the last :meth:`TrainedDifferences.refresh`."""

    change: Tensor

    def __init__(self, adapter: Full) -> None:
        self.adapter = adapter
        self.weight = adapter.weight.detach().flatten(1)
        self.bias = None if adapter.bias is None else adapter.bias.detach()
        self.trained = [getattr(adapter, role) for role in adapter.roles]
        self.bias_change = adapter.diff_b.detach() if "diff_b" in adapter.roles else None
        object.__setattr__(adapter, MARK, self)

    @property
    def ready(self) -> bool:
        """Whether the whole change counts now: nothing is dropped, and the network is on."""
        return counts_whole(self.adapter)

    def add_gradients(self, x: Tensor, dy: Tensor) -> None:
        """Add the gradients of weight and bias, of inputs (N, in) and gradients of the result (N, out)."""
        gradients = [parameter.grad for parameter in self.trained]
        weight, bias = gradients[0], gradients[1] if len(gradients) > 1 else None
        if weight is None or (bias is None and len(gradients) > 1):
            raise RuntimeError("a gradient buffer was taken away")
        add_product(weight.flatten(1), dy.mT, x)
        if bias is not None:
            kernels.sum_rows(dy, bias)


class TrainedDifferences:
    """The differences of a network, brought up to date together."""

    def __init__(self, layers: Sequence[TrainedDifference]) -> None:
        sources, targets = [], []
        for layer in layers:
            difference = layer.adapter.diff.detach().flatten(1)
            layer.change = difference
            if difference.dtype != layer.weight.dtype:
                layer.change = torch.empty_like(layer.weight)
                sources.append(difference)
                targets.append(layer.change)
        self._copy = kernels.many_copies(sources, targets, [1.0] * len(sources)) if sources else None

    def refresh(self) -> None:
        """Round the differences as they are now."""
        if self._copy is not None:
            self._copy.run()


def can_differ(module: nn.Module) -> bool:
    """Whether a module is a whole difference of a layer of products, and nothing else."""
    if type(module) is not Full:
        return False
    base = module.base
    if isinstance(base, nn.Conv2d):
        return base.kernel_size == (1, 1) and base.stride == (1, 1) and base.groups == 1
    return type(base) is nn.Linear


def trained_differences(layers: Sequence[nn.Module]) -> list[TrainedDifference]:
    """The places of layers among the trained differences, while all of them count; else none."""
    places = [vars(layer).get(MARK) for layer in layers]
    return [one for one in places if one is not None] if all(one and one.ready for one in places) else []


def different(
    x: Tensor, layers: Sequence[TrainedDifference], residual: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Each layer on x (N, in), the only one plus ``residual`` (N, out)."""
    trained = [parameter for layer in layers for parameter in layer.trained]
    outputs: tuple[Tensor, ...] = _Different.apply(x, layers, residual, *trained)  # type: ignore[no-untyped-call]
    return outputs


class _Different(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layers: Sequence[TrainedDifference], residual: Tensor | None, *_trained: Tensor
    ) -> tuple[Tensor, ...]:
        outputs = []
        for layer in layers:
            out = x @ layer.weight.mT if layer.bias is None else torch.addmm(layer.bias, x, layer.weight.mT)
            if layer.bias_change is None:  # one product on top of the other
                more = None
                out.addmm_(x, layer.change.mT)
            else:
                more = x @ layer.change.mT
            outputs.append(kernels.add_bias(out, layer.bias_change, residual, more))
        ctx.layers = layers
        ctx.save_for_backward(x)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Any, ...]:
        (x,), dx = ctx.saved_tensors, None
        for layer, dy in zip(ctx.layers, dys, strict=True):
            if ctx.needs_input_grad[0]:
                dx = dy @ layer.weight if dx is None else dx.addmm_(dy, layer.weight)
                dx.addmm_(dy, layer.change)
            layer.add_gradients(x, dy)
        residual = dys[0] if ctx.needs_input_grad[2] else None
        return dx, None, residual, *[None] * (len(ctx.needs_input_grad) - 3)
