"""Rotations from skew matrices: R = (I + Q)(I - Q)⁻¹ (Cayley), many at once.

Solvers of a library wait for the device or ask it for memory, so no graph can hold them; products and elementwise steps
can. No row has to be exchanged for stability: the symmetric part of I - Q is I, and stays at least that in every
Schur complement of it, so that no pivot is below 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LEAST = 32  # sides up to this are eliminated column by column, larger ones by halves


def turns(skew: Tensor) -> Tensor:
    """R - I of skew matrices (N, b, b), so that small turns lose no digits; nothing waits for the device."""
    turned: Tensor = _Cayley.apply(skew)  # type: ignore[no-untyped-call]
    return turned


class _Cayley(torch.autograd.Function):
    """R - I = 2(P - I) = 2QP with P = (I - Q)⁻¹, of which dP = P dQ P."""

    @staticmethod
    def forward(ctx: Any, skew: Tensor) -> Tensor:
        whole = inverse(torch.eye(skew.shape[-1], device=skew.device, dtype=skew.dtype) - skew)
        ctx.save_for_backward(whole)
        turned = 2 * whole
        # Beside the diagonal of P nothing is lost. On it P - I would be: there it is taken from QP.
        turned.diagonal(dim1=-2, dim2=-1).copy_(2 * (skew * whole.mT).sum(dim=-1))
        return turned

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (whole,) = ctx.saved_tensors
        reached: Tensor = 2 * (whole.mT @ gradient @ whole.mT)
        return reached


def inverse(matrices: Tensor) -> Tensor:
    """Of (N, b, b), whose symmetric parts are at least I. Both halves of a side follow each other by products alone."""
    size = matrices.shape[-1]
    if matrices.is_meta:
        return torch.empty_like(matrices)
    if size <= LEAST:
        return _eliminated(matrices)
    half = size // 2
    corner, beside = matrices[:, :half, half:], matrices[:, half:, :half]
    first = inverse(matrices[:, :half, :half])
    left, right = beside @ first, first @ corner
    second = inverse(matrices[:, half:, half:] - left @ corner)
    below = second @ left
    out = torch.empty_like(matrices)
    torch.add(first, right @ below, out=out[:, :half, :half])
    torch.neg(right @ second, out=out[:, :half, half:])
    torch.neg(below, out=out[:, half:, :half])
    out[:, half:, half:] = second
    return out


def _eliminated(matrices: Tensor) -> Tensor:
    """Gauss and Jordan's elimination in place: with the pivot p, its column c and its row r the matrix becomes
    A - crᵀ/p, the column -c/p, the row r/p and the pivot 1/p."""
    out = matrices.clone()
    units = torch.eye(out.shape[-1], device=out.device, dtype=out.dtype)
    others = 1 - units
    for place in range(out.shape[-1]):
        column = out[:, :, place] * others[place]
        row = torch.addcmul(units[place], out[:, place], others[place]) / out[:, place, place, None]
        out[:, :, place] = 0
        out.addcmul_(column[:, :, None], row[:, None], value=-1)
        out[:, place] = row
    return out
