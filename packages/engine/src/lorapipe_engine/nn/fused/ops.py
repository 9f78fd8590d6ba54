"""Steps of the fused blocks as autograd functions, each with its backward written out.

What is kept for the backward pass is little: inputs of products where their LoRA needs them, activations of rank r, and
the inputs of norms and activations. The widest, an activation's result, is computed again. Gradients of the LoRA
factors go straight into the network's flat buffers; the factors are arguments only so that autograd knows the results
depend on them.

Tensors are rows: (N, C). ``samples`` is how many pictures the rows belong to (for dropout of ranks).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorapipe_engine.nn import kernels
from lorapipe_engine.nn.fused.packed import Packed, back, product
from lorapipe_engine.nn.fused.pictures import ENOUGH_ROWS, as_pictures, as_rows, convolution_input
from lorapipe_engine.nn.fused.scaled import scaled, scaled_back, scaled_by, scaled_norms
from lorapipe_engine.nn.fused.trained.norms import TrainedNorm, into_of, trained_of


def linear(x: Tensor, pack: Packed, residual: Tensor | None = None, samples: int = 1) -> Tensor:
    """The packed layers on x (N, in), plus ``residual`` (N, out)."""
    if pack.axis is not None:
        whole: tuple[Tensor, ...] = _Scaled.apply(x, pack, residual, False, None, *pack.trained)  # type: ignore[no-untyped-call]
        return whole[0]
    y: Tensor = _Linear.apply(x, pack, residual, samples, *pack.trained)  # type: ignore[no-untyped-call]
    return y


def norm_linear(
    x: Tensor, norm: nn.LayerNorm | TrainedNorm, pack: Packed, samples: int = 1
) -> tuple[Tensor, ...]:
    """x itself, and each packed layer on the norm of x (N, in). Go on with the x that is returned: its gradient is then
    added in the same kernel."""
    outputs: tuple[Tensor, ...]
    if pack.axis is None:
        outputs = _NormLinear.apply(x, norm, pack, samples, *pack.trained, *trained_of(norm))  # type: ignore[no-untyped-call]
        return outputs
    x, normed = layer_norm(x, norm)
    inputs = scaled_norms(x, norm, pack)
    outputs = _Scaled.apply(normed, pack, None, True, inputs, *pack.trained)  # type: ignore[no-untyped-call]
    return x, *outputs


def layer_norm(x: Tensor, norm: nn.LayerNorm | TrainedNorm) -> tuple[Tensor, Tensor]:
    """x itself (see :func:`norm_linear`) and its norm, (N, C)."""
    normed: tuple[Tensor, Tensor] = _LayerNorm.apply(x, norm, *trained_of(norm))  # type: ignore[no-untyped-call]
    return normed


def feed_forward(
    x: Tensor,
    norm: nn.LayerNorm | TrainedNorm,
    first: Packed,
    second: Packed,
    kind: int,
    samples: int = 1,
    *,
    repeated: bool = False,
) -> Tensor:
    """x + second(activation(first(norm(x)))), (N, C); ``kind`` of the activation: see :mod:`.kernels`.

    ``repeated``: this is the end of a block that is computed again for its backward pass. Then autograd is told to keep
    nothing from the activation on, so that the repetition ends before it (a checkpoint's does with the last tensor
    kept).
    """
    x, inner = norm_linear(x, norm, first, samples)
    mask, kept = second.mask(len(x), samples), None
    if repeated:
        inner = _Kept.apply(inner)  # type: ignore[no-untyped-call]
        kept = inner.grad_fn
    y: Tensor = _Second.apply(x, inner, mask, kept, second, kind, *second.trained)  # type: ignore[no-untyped-call]
    return y


def activation(inner: Tensor, kind: int) -> Tensor:
    """The activation of a feed-forward layer alone, (N, F): see :mod:`.kernels`. What it reads stays as it is."""
    active: Tensor = _Activation.apply(inner, kind)  # type: ignore[no-untyped-call]
    return active


def frozen_linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows (N, in) times weight (out, in), which is not trained; keeps nothing."""
    y: Tensor = _Frozen.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
    return y


def group_norm(
    x: Tensor, norm: nn.GroupNorm | TrainedNorm, *, silu: bool, shift: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x itself (see :func:`norm_linear`) and the norm of x + shift, through SiLU where asked: (B, C, H, W) in
    channels-last order. ``shift`` is (B, C); where that needs a gradient, go on without the x that is returned."""
    normed: tuple[Tensor, Tensor] = _GroupNorm.apply(x, norm, silu, shift, *trained_of(norm))  # type: ignore[no-untyped-call]
    return normed


def convolution(
    x: Tensor, conv: nn.Conv2d, *, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """A frozen convolution of x (B, C, H, W), plus ``bias`` (C,) and ``residual``; keeps nothing of x."""
    y: Tensor = _Convolution.apply(x, conv, bias, residual)  # type: ignore[no-untyped-call]
    return y


def attend_few(query: Tensor, keys: Tensor, batch: int, heads: int) -> Tensor:
    """Attention of rows (B·N, heads·D) on rows [key | value] (B·M, 2·heads·D), where :func:`kernels.few_keys` holds."""
    attended: Tensor = _AttendFew.apply(query, keys, batch, heads)  # type: ignore[no-untyped-call]
    return attended


# ------------------------------------------------------------------------------------------ parts


def _normed(
    x: Tensor, norm: nn.LayerNorm | TrainedNorm, pack: Packed, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """[norm of x | its rank activation], and the mean and 1/deviation of the rows of x."""
    both = x.new_empty(len(x), pack.width + pack.rank)
    normed, hidden = both[:, : pack.width], both[:, pack.width :]
    mean, rstd = kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, normed)
    torch.mm(normed, pack.down.mT, out=hidden)
    _masked(hidden, mask)
    return both, mean, rstd


def _masked(hidden: Tensor, mask: Tensor | None) -> Tensor:
    return hidden if mask is None else hidden.mul_(mask)


def _back_added(dys: Sequence[Tensor], pack: Packed, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of input and rank activation; the rows of the first are longer than it is."""
    both = back(dys, pack, mask)
    dx, dhidden = both[:, : pack.width], both[:, pack.width :]
    return dx.addmm_(dhidden, pack.down), dhidden


def _apart_or_joined(dys: Sequence[Tensor]) -> Sequence[Tensor]:
    """The gradients of a pack's layers, side by side in one where that costs less than a product for each of them."""
    return dys if len(dys) == 1 or len(dys[0]) >= ENOUGH_ROWS else [torch.cat(tuple(dys), dim=1)]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, pack: Packed, residual: Tensor | None, samples: int, *_trained: Tensor
    ) -> Tensor:
        mask = pack.mask(len(x), samples)
        both = product(x, pack.left, pack.left_bias)
        _masked(both[:, pack.out :], mask)
        out, hidden = kernels.lift(both, pack.up.mT, residual)
        ctx.pack = pack
        ctx.save_for_backward(x, hidden, mask)
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, hidden, mask = ctx.saved_tensors
        pack: Packed = ctx.pack
        dx = None
        if ctx.needs_input_grad[0]:
            dx, dhidden = kernels.lift(back([dy], pack, mask), pack.down)
        else:
            dhidden = _masked(dy @ pack.up, mask)
        pack.add_gradients(x, hidden, [dy], dhidden)
        return dx, None, dy if ctx.needs_input_grad[2] else None, None, *[None] * len(pack.trained)


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: nn.LayerNorm | TrainedNorm, pack: Packed, samples: int, *_trained: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        mask = pack.mask(len(x), samples)
        both, mean, rstd = _normed(x, norm, pack, mask)
        out = product(both, pack.joined, pack.bias)
        ctx.pack, ctx.norm = pack, norm
        ctx.save_for_backward(x, mean, rstd, both, mask)
        return x, *torch.split(out, pack.outs, dim=1)

    @staticmethod
    def backward(ctx: Any, also: Tensor | None, *dys: Tensor) -> tuple[Any, ...]:
        x, mean, rstd, both, mask = ctx.saved_tensors
        pack, norm = ctx.pack, ctx.norm
        parts = _apart_or_joined(dys)
        dnormed, dhidden = _back_added(parts, pack, mask)
        dx = kernels.layer_norm_backward(x, mean, rstd, norm.weight, dnormed, also, into_of(norm))
        pack.add_gradients(both[:, : pack.width], both[:, pack.width :], parts, dhidden)
        return dx, *[None] * (len(ctx.needs_input_grad) - 1)


class _LayerNorm(torch.autograd.Function):
    """x itself and its norm, for layers that cannot be joined with it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: nn.LayerNorm | TrainedNorm, *_trained: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        out = torch.empty_like(x)
        mean, rstd = kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, out)
        ctx.norm = norm
        ctx.save_for_backward(x, mean, rstd)
        return x, out

    @staticmethod
    def backward(ctx: Any, also: Tensor | None, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        x, mean, rstd = ctx.saved_tensors
        rest, norm = [None] * (len(ctx.needs_input_grad) - 1), ctx.norm
        if dy is None:
            return also, *rest
        return kernels.layer_norm_backward(x, mean, rstd, norm.weight, dy, also, into_of(norm)), *rest


class _Scaled(torch.autograd.Function):
    """:class:`_Linear` of layers under magnitudes; with ``apart`` each layer's result by itself. ``inputs``: see
    :func:`.scaled.scaled`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        pack: Packed,
        residual: Tensor | None,
        apart: bool,
        inputs: Tensor | None,
        *_trained: Tensor,
    ) -> tuple[Tensor, ...]:
        outs, hidden, both = scaled(x, pack, residual, inputs)
        ctx.pack = pack
        ctx.save_for_backward(x if pack.reads_input else None, hidden, both)
        if apart and len(outs) < len(pack.outs):
            return torch.split(outs[0], pack.outs, dim=1)
        return tuple(outs) if apart or len(outs) == 1 else (torch.cat(tuple(outs), dim=1),)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Any, ...]:
        x, hidden, both = ctx.saved_tensors
        pack: Packed = ctx.pack
        dx = scaled_back(_apart_or_joined(dys), x, hidden, both, pack, ctx.needs_input_grad[0])
        return dx, None, dys[0] if ctx.needs_input_grad[2] else None, *[None] * (2 + len(pack.trained))


class _Kept(torch.autograd.Function):
    """inner itself, kept for :class:`_Second`, which reads it here."""

    @staticmethod
    def forward(ctx: Any, inner: Tensor) -> Tensor:
        ctx.save_for_backward(inner)
        return inner.view_as(inner)

    @staticmethod
    def backward(ctx: Any, dinner: Tensor) -> Tensor:  # noqa: ARG004
        return dinner


class _Second(torch.autograd.Function):
    """x + second(activation(inner)). ``kept``: the node of :class:`_Kept` that has inner, or None."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        inner: Tensor,
        mask: Tensor | None,
        kept: Any,
        second: Packed,
        kind: int,
        *_trained: Tensor,
    ) -> Tensor:
        active = x.new_empty(len(x), second.width)
        kernels.activate(kind, inner, active, second.ratio[0] if second.axis == 1 else None)
        ctx.second, ctx.kind, ctx.kept = second, kind, kept
        if kept is None:
            ctx.save_for_backward(inner)
        if second.axis == 0:
            (out,), ctx.hidden, ctx.both = scaled(active, second, x)
            return out
        if second.axis == 1:
            (out,), ctx.hidden = scaled_by(active, second, x)
            ctx.mask = None
            return out
        both = product(active, second.left, second.left_bias)
        _masked(both[:, second.out :], mask)
        out, hidden = kernels.lift(both, second.up.mT, x)
        # Of the rank's width: kept from the first time on, whatever is repeated.
        ctx.hidden, ctx.mask = hidden, mask
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        (inner,) = (ctx.kept or ctx).saved_tensors
        second = ctx.second
        if second.axis == 0:
            active = dy.new_empty(len(dy), second.width)
            kernels.activate(ctx.kind, inner, active)
            dactive = scaled_back([dy], active, ctx.hidden, ctx.both, second, True)
            assert dactive is not None
            dinner, _ = kernels.activate_backward(ctx.kind, inner, dactive)
            return dy, dinner, *[None] * (4 + len(second.trained))
        # Narrow to wide: cheaper to put the ranks beside the narrow side than to add their share to the wide one.
        dhidden = _masked(dy @ second.up, ctx.mask)
        dactive = torch.cat([dy, dhidden], dim=1) @ second.left
        if second.axis == 1:
            scale = second.ratio[0], second.ratio_grad[0]
            dinner, active = kernels.activate_scaled_backward(ctx.kind, inner, dactive, *scale)
        else:
            dinner, active = kernels.activate_backward(ctx.kind, inner, dactive)
        second.add_gradients(active, ctx.hidden, [dy], dhidden)
        return dy, dinner, *[None] * (4 + len(second.trained))


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inner: Tensor, kind: int) -> Tensor:
        active = inner.new_empty(len(inner), inner.shape[1] // (2 if kind == kernels.GEGLU else 1))
        kernels.activate(kind, inner, active)
        ctx.kind = kind
        ctx.save_for_backward(inner)
        return active

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (inner,) = ctx.saved_tensors
        return kernels.activate_backward(ctx.kind, inner, dy, apart=True)[0], None


class _Frozen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        return dy @ ctx.weight if ctx.needs_input_grad[0] else None, None, None


class _AttendFew(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, batch: int, heads: int) -> Tensor:
        ctx.batch, ctx.heads = batch, heads
        ctx.save_for_backward(query, keys)
        return kernels.attend_few(query, keys, batch, heads)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        query, keys = ctx.saved_tensors
        dquery, dkeys = kernels.attend_few_backward(query, keys, grad, ctx.batch, ctx.heads)
        return dquery, dkeys, None, None


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm: nn.GroupNorm | TrainedNorm,
        silu: bool,
        shift: Tensor | None,
        *_trained: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        rows = as_rows(x).view(len(x), -1, x.shape[1])
        out, mean, rstd = kernels.group_norm(
            rows, norm.num_groups, norm.weight, norm.bias, norm.eps, shift, silu
        )
        ctx.norm, ctx.silu = norm, silu
        ctx.save_for_backward(x, mean, rstd, shift)
        return x, as_pictures(out, x)

    @staticmethod
    def backward(ctx: Any, also: Tensor | None, dy: Tensor | None) -> tuple[Any, ...]:
        x, mean, rstd, shift = ctx.saved_tensors
        rest = [None] * (len(ctx.needs_input_grad) - 4)
        if dy is None:
            return also, None, None, None, *rest
        norm, shape = ctx.norm, (len(x), -1, x.shape[1])
        dx = kernels.group_norm_backward(
            as_rows(x).view(shape),
            mean,
            rstd,
            norm.weight,
            norm.bias,
            shift,
            ctx.silu,
            as_rows(dy).view(shape),
            None if also is None else as_rows(also).view(shape),
            into_of(norm),
        )
        dshift = dx.sum(dim=1) if ctx.needs_input_grad[3] else None
        return as_pictures(dx, x), None, None, dshift, *rest


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: nn.Conv2d, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        out = F.conv2d(x, conv.weight, None, conv.stride, conv.padding)
        out = out.contiguous(memory_format=torch.channels_last)
        kernels.add_bias(as_rows(out), bias, None if residual is None else as_rows(residual))
        ctx.conv, ctx.shape = conv, x.shape
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        conv, dx = ctx.conv, None
        if ctx.needs_input_grad[0]:
            dy = dy.contiguous(memory_format=torch.channels_last)
            dx = convolution_input(ctx.shape, conv, dy, conv.weight)
        return dx, None, None, dy if ctx.needs_input_grad[3] else None
