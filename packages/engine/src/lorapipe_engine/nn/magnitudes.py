"""Norms of W + s·U·D by one axis of a weight, without a dense change; and inputs that are scaled in half precision.

With V = W + s U D, summed over everything but the axis:

    by inputs    ‖V‖² = ‖W‖² + Σ_r D ∘ (2s UᵀW + s² (UᵀU) D)
    by outputs   ‖V‖² = ‖W‖² + Σ_r U ∘ (2s W Dᵀ + s² U (D Dᵀ))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def squares_of_sum(
    weight: Tensor, squares: Tensor, up: Tensor, down: Tensor, scale: Tensor | float, *, by_output: bool
) -> Tensor:
    """‖V‖² for each output, or for each input, as ``squares``, those of W, has them. ``weight`` (out, in, ...), ``up``
    (out, r) and ``down`` (r, in·k·k), both of float32 or more."""
    flat = weight.flatten(1)
    if by_output:
        inner = _product(down, flat.mT).mT * (2 * scale) + up @ (down @ down.mT) * scale**2  # (out, r)
        more = (up * inner).sum(dim=1)
    else:
        inner = _product(up.mT, flat) * (2 * scale) + (up.mT @ up) @ down * scale**2  # (r, in·k·k)
        more = (down * inner).sum(dim=0).view(weight.shape[1], -1).sum(dim=1)
    return (squares + more.view(squares.shape)).clamp(min=0)


def squares_of_sums(
    weights: Sequence[Tensor], squares: Tensor, up: Tensor, down: Tensor, *, by_output: bool
) -> Tensor:
    """:func:`squares_of_sum` of N layers that are alike, (N, out) or (N, in): ``up`` (N, out, r), ``down`` (N, r, in),
    ``squares`` those of the ``weights``. Each weight is read by one product, and all else is done for all of them
    together."""
    flat = [weight.flatten(1) for weight in weights]
    if by_output:
        crossed, square = _products(down, [weight.mT for weight in flat])
        inner = torch.baddbmm(crossed.mT, up, square, beta=2)  # (N, out, r)
        more = (up * inner).sum(dim=2)
    else:
        crossed, square = _products(up.mT, flat)
        inner = torch.baddbmm(crossed, square, down, beta=2)  # (N, r, in)
        more = (down * inner).sum(dim=1)
    return (squares + more).clamp(min=0)


def _product(factor: Tensor, weight: Tensor) -> Tensor:
    """``factor`` (r, m) times a frozen weight (m, n), in the factor's dtype."""
    return _products(factor[None], [weight])[0][0]


def _products(factors: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Each of ``factors`` F (N, r, m) times its frozen weight (m, n), (N, r, n), and F Fᵀ (N, r, r), in the factors'
    dtype.

    On a card weights in half precision are not made wide: factors go as two numbers of their type, of which the
    second has what the first rounds away.
    """
    like = weights[0]
    if not (like.is_cuda and like.dtype in (torch.bfloat16, torch.float16)):
        rows = zip(factors.unbind(), weights, strict=True)
        made = torch.stack([factor @ weight.to(factor.dtype) for factor, weight in rows])
        return made, factors @ factors.mT
    count, ranks, _ = factors.shape
    high = factors.to(like.dtype)
    low = (factors - high.to(factors.dtype)).to(like.dtype)
    both = torch.cat([high, low], dim=1)
    pairs = zip(both.unbind(), weights, strict=True)
    made = torch.stack([torch.mm(pair, weight, out_dtype=torch.float32) for pair, weight in pairs])
    squares = torch.bmm(both, both.mT, out_dtype=torch.float32).view(count, 2, ranks, 2, ranks)
    return (made[:, :ranks] + made[:, ranks:]).to(factors.dtype), squares.sum(dim=(1, 3)).to(factors.dtype)


class StandIn(torch.autograd.Function):
    """x itself, with the gradients of x times ``factor`` (of as many dimensions as x, one of them not 1).

    What is frozen and linear on top of it then has the gradients of the scaled input in one backward product, and its
    result lacks the product of x times (factor - 1), to be added without gradients.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(x, factor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad,) = grads
        x, factor = ctx.saved_tensors
        rest = [d for d in range(x.dim()) if factor.shape[d] == 1]
        dx = grad * factor.to(grad.dtype) if ctx.needs_input_grad[0] else None
        dfactor = None
        if ctx.needs_input_grad[1]:
            dfactor = (x * grad).sum(dim=rest, keepdim=True, dtype=torch.float32).to(factor.dtype)
        return dx, dfactor
