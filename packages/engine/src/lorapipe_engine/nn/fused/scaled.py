"""Packed layers under magnitudes: a ratio by outputs or by inputs, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lorapipe_engine.nn import kernels
from lorapipe_engine.nn.fused.packed import HALF, Packed, added, back, product
from lorapipe_engine.nn.fused.trained.norms import TrainedNorm


def scaled(
    x: Tensor, pack: Packed, residual: Tensor | None, inputs: Tensor | None = None
) -> tuple[Sequence[Tensor], Tensor, Tensor | None]:
    """Layers under magnitudes on x (N, in): their result (N, out), or that of each; the rank activation; and by outputs
    [x Wᵀ | x Aᵀ], which the backward pass needs.

    ``inputs``, by inputs: x times the ratio of each layer, rounded once, with room for the rank activation (layers, N,
    in + R). Without them the layers read, in half precision, x and in products of their own what the magnitudes add to
    x: x times a ratio near 1 would be rounded to x.
    """
    if pack.axis == 0:
        both = x @ pack.left.mT
        out, hidden = kernels.lift(both, pack.up.mT, residual, ratio=pack.ratio, bias=pack.bias)
        return [out], hidden, both
    if inputs is not None:
        return *_on_inputs(x, pack, residual, inputs), None
    if x.dtype in HALF:
        return *_beside(x, pack, residual), None
    if len(pack.outs) == 1:
        return *scaled_by(x * pack.ratio[0], pack, residual), None
    both = x.new_empty(len(x), pack.out + pack.rank)
    torch.mm(x, pack.down.mT, out=both[:, pack.out :])
    biases: Sequence[Tensor | None] = [None] * len(pack.outs)
    if pack.bias is not None:
        biases = torch.split(pack.bias, pack.outs)
    parts, matrices = torch.split(both[:, : pack.out], pack.outs, dim=1), torch.split(pack.weight, pack.outs)
    for part, ratio, matrix, bias in zip(parts, pack.ratio, matrices, biases, strict=True):
        product(x * ratio, matrix, bias, part)
    out, hidden = kernels.lift(both, pack.up.mT, residual)
    return [out], hidden, None


def scaled_by(given: Tensor, pack: Packed, residual: Tensor | None) -> tuple[Sequence[Tensor], Tensor]:
    """One layer on ``given`` (N, in), x times its ratio: see :func:`scaled`."""
    out, hidden = kernels.lift(product(given, pack.left, pack.left_bias), pack.up.mT, residual)
    return [out], hidden


def _beside(x: Tensor, pack: Packed, residual: Tensor | None) -> tuple[Sequence[Tensor], Tensor]:
    """By inputs, in half precision: x and what the ratio adds to it, each by a product."""
    assert pack.less is not None
    both = product(x, pack.left, pack.left_bias)
    if len(pack.outs) == 1:
        moved = (x * pack.less) @ pack.left.mT
    else:
        moved = x.new_empty(len(x), pack.out)
        parts, matrices = torch.split(moved, pack.outs, dim=1), torch.split(pack.weight, pack.outs)
        for part, given, matrix in zip(parts, x * pack.less[:, None], matrices, strict=True):
            product(given, matrix, None, part)
    out, hidden = kernels.lift(both, pack.up.mT, residual, more=moved)
    return [out], hidden


def _on_inputs(
    x: Tensor, pack: Packed, residual: Tensor | None, inputs: Tensor
) -> tuple[Sequence[Tensor], Tensor]:
    """By inputs, with x times each ratio made already."""
    # A tensor of its own: it is kept for the backward pass, where the inputs are not.
    hidden = (inputs[0, :, : pack.width] if len(inputs) == 1 else x) @ pack.down.mT
    inputs[:, :, pack.width :] = hidden
    if pack.are_even:
        matrices = pack.joined.view(len(inputs), pack.outs[0], -1).mT
        bias = None if pack.bias is None else pack.bias.view(len(inputs), 1, -1)
        whole = inputs @ matrices if bias is None else torch.baddbmm(bias, inputs, matrices)
        outs = list(whole.unbind())
    else:
        biases: Sequence[Tensor | None] = [None] * len(inputs)
        if pack.bias is not None:
            biases = torch.split(pack.bias, pack.outs)
        rows = zip(inputs, torch.split(pack.joined, pack.outs), biases, strict=True)
        outs = [product(given, matrix, bias) for given, matrix, bias in rows]
    if residual is not None:
        outs = [torch.cat(outs, dim=1) + residual]
    return outs, hidden


@torch.no_grad()
def scaled_norms(x: Tensor, norm: nn.LayerNorm | TrainedNorm, pack: Packed) -> Tensor | None:
    """The norm of x times the ratio of each layer of a pack, rounded once, with room for the rank activation, (layers,
    N, in + R); None where that is not needed."""
    if pack.axis != 1 or x.dtype not in HALF:
        return None
    inputs = x.new_empty(len(pack.ratio), len(x), pack.width + pack.rank)
    kernels.layer_norm_each(x, norm.weight, norm.bias, norm.eps, pack.ratio, inputs[:, :, : pack.width])
    return inputs


def scaled_back(
    dys: Sequence[Tensor], x: Tensor | None, hidden: Tensor, both: Tensor | None, pack: Packed, needs: bool
) -> Tensor | None:
    """The gradient of what :func:`scaled` read, None where nothing ``needs`` it; those of ratio and factors are added
    up. ``dys``: as for :meth:`Packed.add_gradients`. ``x``: may be None where :attr:`Packed.reads_input` says so."""
    dx: Tensor | None = None
    if pack.axis == 0:
        assert both is not None
        turned, column = [], 0
        for dy in dys:
            here = slice(column, column + dy.shape[1])
            into = pack.ratio_grad[here]
            turned.append(kernels.scale_columns(dy, pack.ratio[here], both[:, here], into))
            column = here.stop
        if needs and not pack.rank:
            return back(turned, pack, None)
        if needs:
            dx, dhidden = kernels.lift(back(turned, pack, None), pack.down)
        else:
            dhidden = added(turned, pack.up)
    elif len(pack.outs) == 1:
        assert x is not None
        sums = (x, pack.ratio_grad[0])
        dx, dhidden = kernels.lift(back(dys, pack, None), pack.down, ratio=pack.ratio[0], sums=sums)
    else:
        assert x is not None
        dx = kernels.sum_scaled(_backs(dys, x, pack), pack.ratio, x, pack.ratio_grad)
        dhidden = added(dys, pack.up)
        dx = dx.addmm_(dhidden, pack.down) if needs else None
    if x is not None:
        pack.add_gradients(x, hidden, dys, dhidden)
    return dx if needs else None


def _backs(dys: Sequence[Tensor], x: Tensor, pack: Packed) -> Tensor:
    """dy W of each layer, (layers, N, in)."""
    count = len(pack.outs)
    if len(dys) == 1 and pack.are_even:
        parts = dys[0].view(len(x), count, -1).transpose(0, 1)
        return torch.bmm(parts, pack.weight.view(count, -1, pack.width))
    made = x.new_empty(count, len(x), pack.width)
    apart = dys if len(dys) == count else torch.split(dys[0], pack.outs, dim=1)
    for place, dy, weight in zip(made, apart, torch.split(pack.weight, pack.outs), strict=True):
        torch.mm(dy, weight, out=place)
    return made
