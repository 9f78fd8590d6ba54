"""The layers of a fused block: packed where they are low-rank adapters, else called by their own forward.

Rows are (B·N, C); ``samples`` is B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorapipe_engine.nn.adapters.full import Norm
from lorapipe_engine.nn.base import Adapter, is_off
from lorapipe_engine.nn.fused import ops, pictures
from lorapipe_engine.nn.fused.packed import Packed, axis_of, can_pack
from lorapipe_engine.nn.fused.trained.convolutions import trained_convolution
from lorapipe_engine.nn.fused.trained.differences import different, trained_differences
from lorapipe_engine.nn.fused.trained.norms import trained_norm


class Own:
    """Layers that read the same input and run their own forward: frozen ones, subclasses of Lora, other algorithms."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        self.layers = list(layers)

    def on_rows(self, rows: Tensor, samples: int) -> list[Tensor]:
        """Each layer's result (B·N, out). The layers see (B, N, C), as in the library's block."""
        if differences := trained_differences(self.layers):
            return list(different(rows, differences))
        x = rows.reshape(samples, -1, rows.shape[1])
        return [layer(x).flatten(0, 1) for layer in self.layers]

    def on_pictures(self, rows: Tensor, like: Tensor) -> Tensor:
        """The result of a 1x1 convolution, (B·H·W, out); B, H, W of ``like``."""
        return pictures.as_rows(self.layers[0](pictures.as_pictures(rows, like)))


Layers = Packed | Own


def layers_of(*modules: Any) -> Layers:
    """Pack the layers where all of them can be packed, and have magnitudes alike or none."""
    fit = all(can_pack(module) for module in modules) and len({axis_of(module) for module in modules}) == 1
    return pack(*modules) if fit else Own(modules)


def frozen(layers: Layers) -> Own:
    """The same layers, each by itself: those of a network that is off, which a pack cannot leave out."""
    return layers if isinstance(layers, Own) else Own(layers.modules)


def pack(*modules: Any) -> Packed:
    """Pack layers, and leave a mark on each, so that none is packed twice."""
    packed = Packed(modules)
    for module in modules:
        object.__setattr__(module, "pack", packed)
    return packed


def has_adapter(root: nn.Module) -> bool:
    """Whether any layer in ``root`` is trained."""
    return any(isinstance(module, Adapter) for module in root.modules())


def linear(x: Tensor, layers: Layers, residual: Tensor | None = None, samples: int = 1) -> Tensor:
    """The layers on x (N, in) side by side, plus ``residual`` (N, out)."""
    if isinstance(layers, Packed):
        return ops.linear(x, layers, residual, samples)
    if len(layers.layers) == 1 and (differences := trained_differences(layers.layers)):
        return different(x, differences, residual)[0]
    parts = layers.on_rows(x, samples)
    out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return out if residual is None else out + residual


def norm_linear(
    x: Tensor, norm: nn.LayerNorm | Adapter, layers: Layers, samples: int = 1
) -> tuple[Tensor, ...]:
    """x itself, and each layer on the norm of x (N, in). Go on with the x that is returned."""
    fused = fused_norm(norm)
    if fused is None:
        normed = norm(x)
        if isinstance(layers, Packed):
            return x, *torch.split(ops.linear(normed, layers, samples=samples), layers.outs, dim=1)
        return x, *layers.on_rows(normed, samples)
    if isinstance(layers, Packed):
        return ops.norm_linear(x, fused, layers, samples)
    x, normed = ops.layer_norm(x, fused)
    return x, *layers.on_rows(normed, samples)


def fused_norm(norm: nn.Module) -> Any:
    """What the fused operations read of a norm; None where it has to run its own forward."""
    if isinstance(norm, Adapter):
        return trained_norm(norm)
    return None if norm.weight is None or norm.bias is None else norm


class GroupNorm:
    """A group norm of pictures, frozen or trained, by the fused operation. A trained one with dropouts is normed there
    without weight and bias, which follow in operations of their own."""

    def __init__(self, norm: nn.GroupNorm | Norm) -> None:
        self.norm = norm
        self.plain = norm
        if isinstance(norm, Norm):
            base = norm.base
            assert isinstance(base, nn.GroupNorm)
            like = base.weight
            self.plain = nn.GroupNorm(
                base.num_groups, base.num_channels, base.eps, device=like.device, dtype=like.dtype
            ).requires_grad_(False)

    def __call__(self, x: Tensor, *, silu: bool, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See :func:`.ops.group_norm`."""
        if not isinstance(self.norm, Norm):
            return ops.group_norm(x, self.norm, silu=silu, shift=shift)
        if is_off(self.norm):
            return ops.group_norm(x, cast(nn.GroupNorm, self.norm.base), silu=silu, shift=shift)
        if (trained := trained_norm(self.norm)) is not None:
            return ops.group_norm(x, trained, silu=silu, shift=shift)
        assert isinstance(self.plain, nn.GroupNorm)
        x, hat = ops.group_norm(x, self.plain, silu=False, shift=shift)
        out = self.norm.on_normed(hat)
        return x, F.silu(out) if silu else out


def convolution(layer: nn.Module, x: Tensor, residual: Tensor | None = None, *, bias: bool = True) -> Tensor:
    """A frozen convolution, or an adapter by its own forward, on x (B, C, H, W), plus ``residual``. ``bias``: False
    where that of a frozen one is added elsewhere."""
    if isinstance(layer, nn.Conv2d):
        return ops.convolution(x, layer, bias=layer.bias if bias else None, residual=residual)
    if (trained := trained_convolution(layer, x)) is not None:
        return trained(x, residual)
    out: Tensor = layer(x)
    return out if residual is None else out + residual


def project(rows: Tensor, layers: Layers, like: Tensor, residual: Tensor | None = None) -> Tensor:
    """A linear layer or 1x1 convolution on the rows of pictures such as ``like``, plus ``residual``."""
    if isinstance(layers, Own) and isinstance(_inner(layers.layers[0]), nn.Conv2d):
        if differences := trained_differences(layers.layers):
            return different(rows, differences, residual)[0]
        out = layers.on_pictures(rows, like)
        return out if residual is None else out + residual
    return linear(rows, layers, residual, len(like))


def feed_forward(
    x: Tensor,
    norm: nn.LayerNorm | Adapter,
    first: Layers,
    second: Layers,
    kind: int,
    samples: int = 1,
    *,
    repeated: bool = False,
) -> Tensor:
    """x + second(activation(first(norm(x)))), (N, C); see :func:`.ops.feed_forward`."""
    fused = fused_norm(norm)
    if isinstance(first, Packed) and isinstance(second, Packed) and fused is not None:
        return ops.feed_forward(x, fused, first, second, kind, samples, repeated=repeated)
    x, inner = norm_linear(x, norm, first, samples)
    # Apart: a layer's own backward may still need what the activation read.
    return linear(ops.activation(inner, kind), second, x, samples)


def _inner(layer: nn.Module) -> nn.Module:
    return layer.base if isinstance(layer, Adapter) else layer
