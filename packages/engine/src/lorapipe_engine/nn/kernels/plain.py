"""The operations of the fused blocks in torch's own, for every device; their arguments are explained in
:mod:`.kernels`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Of a feed-forward layer: value · gelu(gate), gelu, and CLIP's x · sigmoid(1.702 x). The first takes (N, 2F) rows
# [value | gate], the others (N, F).
GEGLU, GELU, QUICK_GELU = 0, 1, 2


def lift(
    both: Tensor,
    factor: Tensor,
    residual: Tensor | None,
    more: Tensor | None = None,
    ratio: Tensor | None = None,
    bias: Tensor | None = None,
    sums: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    width = factor.shape[1]
    hidden = both[:, width:].clone()
    if ratio is None and more is None and bias is None:
        out = both[:, :width].addmm_(hidden, factor)
        return (out.contiguous() if residual is None else out + residual), hidden
    if more is not None and more.shape[1] > width:
        hidden, more = hidden.add_(more[:, width:]), more[:, :width]
    # As on a card: summed in float32, and rounded once.
    wide = _wide(both[:, :width]) + _wide(hidden) @ _wide(factor)
    if sums is not None:
        other, into = sums
        into.add_((wide * other).sum(dim=0))
    if ratio is not None:
        wide = wide * ratio
    for part in (bias, residual, more):
        wide = wide if part is None else wide + part
    return wide.to(both.dtype), hidden


def scale_columns(x: Tensor, ratio: Tensor, other: Tensor, into: Tensor) -> Tensor:
    wide = _wide(x)
    into.add_((wide * other).sum(dim=0))
    return (wide * ratio).to(x.dtype)


def sum_scaled(parts: Tensor, ratio: Tensor, other: Tensor, into: Tensor) -> Tensor:
    wide = _wide(parts)
    into.add_((wide * other).sum(dim=1))
    return (wide * ratio[:, None]).sum(dim=0).to(parts.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor) -> tuple[Tensor, Tensor]:
    wide = _wide(x)
    mean = wide.mean(dim=1)
    rstd = (wide.var(dim=1, unbiased=False) + eps).rsqrt()
    out.copy_((wide - mean[:, None]) * rstd[:, None] * weight + bias)
    return mean, rstd


def layer_norm_each(x: Tensor, weight: Tensor, bias: Tensor, eps: float, ratio: Tensor, out: Tensor) -> None:
    for own, into in zip(ratio, out, strict=True):
        layer_norm(x, weight * own, bias * own, eps, into)


def layer_norm_backward(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    grad: Tensor,
    also: Tensor | None,
    into: tuple[Tensor, Tensor | None] | None = None,
) -> Tensor:
    hat = (_wide(x) - mean[:, None]) * rstd[:, None]
    _sum_up(_wide(grad), hat, into)
    inner = _wide(grad) * weight
    dx = inner - inner.mean(dim=1, keepdim=True) - hat * (inner * hat).mean(dim=1, keepdim=True)
    dx = dx * rstd[:, None]
    return (dx if also is None else dx + also).to(x.dtype)


def _sum_up(dz: Tensor, hat: Tensor, into: tuple[Tensor, Tensor | None] | None) -> None:
    """Add the gradients of a norm's weight and bias, of rows that are normed and of gradients."""
    if into is None:
        return
    weight, bias = into
    weight.add_((dz * hat).flatten(0, -2).sum(dim=0))
    if bias is not None:
        bias.add_(dz.flatten(0, -2).sum(dim=0))


def activate(kind: int, inner: Tensor, out: Tensor, ratio: Tensor | None = None) -> None:
    value, gate = _value_and_gate(kind, inner)
    active = value * gate * _share(kind, gate)[0]
    out.copy_(active if ratio is None else active * ratio)


def activate_backward(
    kind: int,
    inner: Tensor,
    grad: Tensor,
    apart: bool = False,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    value, gate = _value_and_gate(kind, inner)
    share, slope = _share(kind, gate)
    wide = _wide(grad)
    dgate = wide * value * slope
    dinner = torch.cat([wide * gate * share, dgate], dim=1) if kind == GEGLU else dgate
    return dinner.to(inner.dtype), (value * gate * share).to(grad.dtype)


def activate_scaled_backward(
    kind: int, inner: Tensor, grad: Tensor, ratio: Tensor, into: Tensor
) -> tuple[Tensor, Tensor]:
    value, gate = _value_and_gate(kind, inner)
    into.add_((_wide(grad) * (value * gate * _share(kind, gate)[0])).sum(dim=0))
    dinner, active = activate_backward(kind, inner, _wide(grad) * ratio)
    return dinner, active.to(grad.dtype)


def _value_and_gate(kind: int, inner: Tensor) -> tuple[Tensor, Tensor]:
    wide = _wide(inner)
    if kind != GEGLU:
        return wide.new_ones(1), wide
    value, gate = wide.chunk(2, dim=1)
    return value, gate


def _share(kind: int, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Of the gate: by what it is multiplied, and the slope of the product."""
    if kind == QUICK_GELU:
        share = torch.sigmoid(1.702 * gate)
        return share, share + 1.702 * gate * share * (1 - share)
    share = 0.5 * (1 + torch.erf(gate * 0.5**0.5))
    return share, share + gate * torch.exp(-0.5 * gate.square()) * 0.3989422804014327


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, shift: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    parts = _in_groups(x, shift, groups)
    mean = parts.mean(dim=(1, 3))
    rstd = (parts.var(dim=(1, 3), unbiased=False) + eps).rsqrt()
    z = _normed(parts, mean, rstd) * weight + bias
    return (F.silu(z) if silu else z).to(x.dtype), mean, rstd


def group_norm_backward(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    silu: bool,
    grad: Tensor,
    also: Tensor | None,
    into: tuple[Tensor, Tensor | None] | None = None,
) -> Tensor:
    parts = _in_groups(x, shift, mean.shape[1])
    hat = _normed(parts, mean, rstd)
    dz = _wide(grad)
    if silu:
        z = hat * weight + bias
        sigmoid = torch.sigmoid(z)
        dz = dz * sigmoid * (1 + z * (1 - sigmoid))
    _sum_up(dz, hat, into)
    inner = (dz * weight).view(parts.shape)
    hat = hat.view(parts.shape)
    dx = inner - inner.mean(dim=(1, 3), keepdim=True) - hat * (inner * hat).mean(dim=(1, 3), keepdim=True)
    dx = (dx * rstd[:, None, :, None]).view(x.shape)
    return (dx if also is None else dx + also).to(x.dtype)


def _in_groups(x: Tensor, shift: Tensor | None, groups: int) -> Tensor:
    wide = _wide(x)
    if shift is not None:
        wide = wide + shift[:, None]
    return wide.reshape(*x.shape[:2], groups, -1)  # (B, S, groups, C / groups)


def _normed(parts: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    return ((parts - mean[:, None, :, None]) * rstd[:, None, :, None]).flatten(2)


def turned(weight: Tensor) -> Tensor:
    return weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)


def add_bias(x: Tensor, bias: Tensor, also: Tensor | None, more: Tensor | None = None) -> None:
    # As on a card: summed in float32, and rounded once.
    wide = _wide(x) + bias
    for part in (also, more):
        wide = wide if part is None else wide + part
    x.copy_(wide)


def sum_rows(x: Tensor, into: Tensor) -> None:
    into.add_(x.sum(dim=0, dtype=into.dtype))


class CopyTable:
    """The copies one by one."""

    def __init__(self, sources: Sequence[Tensor], targets: Sequence[Tensor], scales: Sequence[float]) -> None:
        self._rows = list(zip(sources, targets, scales, strict=True))

    def run(self) -> None:
        """Copy."""
        for source, target, scale in self._rows:
            if source.dtype == target.dtype:
                torch.mul(source, scale, out=target)
            else:
                target.copy_(source * scale)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
