"""Steps of the fused blocks as autograd functions, each with its backward written out.

What is kept for the backward pass is little: inputs of products where their LoRA needs them, activations of rank r, and
the inputs of norms and activations, whose results are computed again. Gradients of the LoRA factors go straight into
the network's flat buffers; the factors are arguments only so that autograd knows the results depend on them.

Tensors are rows: (N, C). ``samples`` is how many pictures the rows belong to (for dropout of ranks).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from lorapipe_engine.nn.fused import kernels
from lorapipe_engine.nn.fused.packed import Packed


def linear(x: Tensor, pack: Packed, residual: Tensor | None = None, samples: int = 1) -> Tensor:
    """The packed layers on x (N, in), plus ``residual`` (N, out)."""
    found: Tensor = _Linear.apply(x, pack, residual, samples, *pack.trained)  # type: ignore[no-untyped-call]
    return found


def norm_linear(x: Tensor, norm: nn.LayerNorm, pack: Packed, samples: int = 1) -> tuple[Tensor, ...]:
    """x itself, and each packed layer on the norm of x (N, in). Go on with the x that is returned: its gradient is then
    added in the same kernel."""
    found: tuple[Tensor, ...] = _NormLinear.apply(x, norm, pack, samples, *pack.trained)  # type: ignore[no-untyped-call]
    return found


def feed_forward(
    x: Tensor, norm: nn.LayerNorm, first: Packed, second: Packed, kind: int, samples: int = 1
) -> Tensor:
    """x + second(activation(first(norm(x)))), (N, C); ``kind`` of the activation: see :mod:`.kernels`."""
    found: Tensor = _FeedForward.apply(  # type: ignore[no-untyped-call]
        x, norm, first, second, kind, samples, *first.trained, *second.trained
    )
    return found


def group_norm(
    x: Tensor, norm: nn.GroupNorm, *, silu: bool, shift: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """x itself (see :func:`norm_linear`) and the norm of x + shift, through SiLU where asked: (B, C, H, W) in
    channels-last order. ``shift`` is (B, C); where that needs a gradient, go on without the x that is returned."""
    found: tuple[Tensor, Tensor] = _GroupNorm.apply(x, norm, silu, shift)  # type: ignore[no-untyped-call]
    return found


def convolution(
    x: Tensor, conv: nn.Conv2d, *, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """A frozen convolution of x (B, C, H, W), plus ``bias`` (C,) and ``residual``; keeps nothing of x."""
    found: Tensor = _Convolution.apply(x, conv, bias, residual)  # type: ignore[no-untyped-call]
    return found


def as_rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B·H·W, C), a view where the order is channels-last."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_pictures(rows: Tensor, like: Tensor) -> Tensor:
    """(B·H·W, C) -> (B, C, H, W) in channels-last order; B, H, W of ``like``."""
    batch, _, height, width = like.shape
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------------ parts


def _product(rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return rows @ matrix.mT if bias is None else torch.addmm(bias, rows, matrix.mT)


def _joined(x: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Room for [x | hidden]: all, x's part, hidden's part."""
    both = x.new_empty(len(x), x.shape[1] + rank)
    return both, both[:, : x.shape[1]], both[:, x.shape[1] :]


def _masked(hidden: Tensor, mask: Tensor | None) -> Tensor:
    return hidden if mask is None else hidden.mul_(mask)


def _back(dy: Tensor, pack: Packed, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of the input and of the rank activation: dy [W | sB] in one product, then A's share on top. The rows of
    the first are longer than it is."""
    both = dy @ pack.joined
    dx, dhidden = both[:, : pack.width], _masked(both[:, pack.width :], mask)
    return dx.addmm_(dhidden, pack.down), dhidden


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, pack: Packed, residual: Tensor | None, samples: int, *_trained: Tensor
    ) -> Tensor:
        mask = pack.mask(len(x), samples)
        hidden = _masked(x @ pack.down.mT, mask)
        out = _product(torch.cat([x, hidden], dim=1), pack.joined, pack.bias)
        ctx.pack = pack
        ctx.save_for_backward(x, hidden, mask)
        return out if residual is None else out.add_(residual)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, hidden, mask = ctx.saved_tensors
        pack: Packed = ctx.pack
        dhidden = _masked(dy @ pack.up, mask)
        pack.add_gradients(x, hidden, dy, dhidden)
        dx = torch.cat([dy, dhidden], dim=1) @ pack.left if ctx.needs_input_grad[0] else None
        return dx, None, dy if ctx.needs_input_grad[2] else None, None, *[None] * len(pack.trained)


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: nn.LayerNorm, pack: Packed, samples: int, *_trained: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        mask = pack.mask(len(x), samples)
        both, normed, hidden = _joined(x, pack.rank)
        mean, rstd = kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, normed)
        torch.mm(normed, pack.down.mT, out=hidden)
        _masked(hidden, mask)
        out = _product(both, pack.joined, pack.bias)
        ctx.pack, ctx.norm = pack, norm
        ctx.save_for_backward(x, mean, rstd, hidden.clone(), mask)
        return x, *torch.split(out, pack.outs, dim=1)

    @staticmethod
    def backward(ctx: Any, also: Tensor | None, *dys: Tensor) -> tuple[Any, ...]:
        x, mean, rstd, hidden, mask = ctx.saved_tensors
        pack, norm = ctx.pack, ctx.norm
        dy = torch.cat(dys, dim=1) if len(dys) > 1 else dys[0]
        dnormed, dhidden = _back(dy, pack, mask)
        normed = torch.empty_like(x)
        dx = kernels.layer_norm_backward(x, mean, rstd, norm.weight, norm.bias, dnormed, also, normed)
        pack.add_gradients(normed, hidden, dy, dhidden)
        return dx, None, None, None, *[None] * len(pack.trained)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm: nn.LayerNorm,
        first: Packed,
        second: Packed,
        kind: int,
        samples: int,
        *_trained: Tensor,
    ) -> Tensor:
        masks = first.mask(len(x), samples), second.mask(len(x), samples)
        both, normed, hidden1 = _joined(x, first.rank)
        mean, rstd = kernels.layer_norm(x, norm.weight, norm.bias, norm.eps, normed)
        torch.mm(normed, first.down.mT, out=hidden1)
        _masked(hidden1, masks[0])
        inner = _product(both, first.joined, first.bias)
        kept = hidden1.clone()
        del both, normed, hidden1
        wide = x.new_empty(len(x), second.width + second.rank)
        active, hidden2 = wide[:, : second.width], wide[:, second.width :]
        kernels.activate(kind, inner, active)
        torch.mm(active, second.down.mT, out=hidden2)
        _masked(hidden2, masks[1])
        out = _product(wide, second.joined, second.bias).add_(x)
        ctx.first, ctx.second, ctx.norm, ctx.kind = first, second, norm, kind
        ctx.save_for_backward(x, mean, rstd, inner, kept, hidden2.clone(), *masks)
        return out

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        x, mean, rstd, inner, hidden1, hidden2, mask1, mask2 = ctx.saved_tensors
        first, second, norm = ctx.first, ctx.second, ctx.norm
        dhidden2 = _masked(dy @ second.up, mask2)
        dactive = torch.cat([dy, dhidden2], dim=1) @ second.left
        dinner = torch.empty_like(inner)
        active = torch.empty_like(dactive)
        kernels.activate_backward(ctx.kind, inner, dactive, dinner, active)
        second.add_gradients(active, hidden2, dy, dhidden2)
        del active, dactive, inner
        dnormed, dhidden1 = _back(dinner, first, mask1)
        normed = torch.empty_like(x)
        dx = kernels.layer_norm_backward(x, mean, rstd, norm.weight, norm.bias, dnormed, dy, normed)
        first.add_gradients(normed, hidden1, dinner, dhidden1)
        return dx, *[None] * (5 + len(first.trained) + len(second.trained))


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: nn.GroupNorm, silu: bool, shift: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        rows = as_rows(x).view(len(x), -1, x.shape[1])
        shift = None if shift is None else shift.contiguous()
        out, mean, rstd = kernels.group_norm(
            rows, norm.num_groups, norm.weight, norm.bias, norm.eps, shift, silu
        )
        ctx.norm, ctx.silu = norm, silu
        ctx.save_for_backward(x, mean, rstd, shift)
        return x, as_pictures(out, x)

    @staticmethod
    def backward(ctx: Any, also: Tensor | None, dy: Tensor | None) -> tuple[Any, ...]:
        x, mean, rstd, shift = ctx.saved_tensors
        if dy is None:
            return also, None, None, None
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
        )
        dshift = dx.sum(dim=1) if ctx.needs_input_grad[3] else None
        return as_pictures(dx, x), None, None, dshift


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
            dx = _convolution_input(ctx.shape, conv, dy)
        return dx, None, None, dy if ctx.needs_input_grad[3] else None


# Rows of pictures from which on turning a kernel costs less than it saves: cuDNN's own input gradient runs at half
# the speed of its forward convolution.
ENOUGH_ROWS = 2048


def _convolution_input(shape: torch.Size, conv: nn.Conv2d, dy: Tensor) -> Tensor:
    """The gradient of a convolution's input, where that pays as a convolution with the kernel turned around."""
    size, padding = conv.kernel_size[0], conv.padding
    whole = conv.stride == (1, 1) and conv.kernel_size == (3, 3) and padding == (1, 1) and conv.groups == 1
    if whole and dy.is_cuda and len(dy) * dy.shape[2] * dy.shape[3] >= ENOUGH_ROWS:
        return F.conv2d(dy, kernels.turned(conv.weight), None, 1, size - 1 - int(padding[0]))
    found: Tensor = conv2d_input(shape, conv.weight, dy, conv.stride, padding)  # type: ignore[no-untyped-call]
    return found
