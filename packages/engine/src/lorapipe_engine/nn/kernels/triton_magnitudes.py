"""The Triton kernel that measures frozen weights with their change; its arguments are explained in :mod:`.kernels`.

Each weight is read once, tile by tile. The change of a tile is made beside it from the factors, and neither is written
anywhere: a sum of squares is all that is left. Factors go as two numbers of the weight's dtype, of which the second has
what the first rounds away; sums are float32.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,misc,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorapipe_engine.nn.kernels.triton_dots import _rank

PROGRAMS = 600  # that fill a card
UNIT = 8  # numbers of half precision in 16 bytes


@triton.jit
def _halves(values, like):
    """``values`` as a sum of two numbers of like's dtype."""
    high = values.to(like.dtype.element_ty)
    return high, (values - high.to(tl.float32)).to(like.dtype.element_ty)


@triton.jit
def _squares_of_tile(weights, up_high, up_low, down_high, down_low):
    # The small parts first, and the weight outside of the matrix units: these round down what they add up.
    change = tl.dot(up_low, down_high, input_precision="ieee")
    change = tl.dot(up_high, down_low, change, input_precision="ieee")
    change = tl.dot(up_high, down_high, change, input_precision="ieee")
    values = weights.to(tl.float32) + change
    return values * values


@triton.jit
def _squares(
    table, like, up, down, sums, M, N, R, total, each,
    stride_up_layer, stride_up, stride_up_rank, stride_down_layer, stride_down, stride_down_column,
    BY_OUTPUT: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, STEP: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """``table``: the address of each weight (M, N), and its row's length in units of UNIT. A program adds up WIDE
    columns over ``each`` rows, or by outputs WIDE rows over as many columns. ``total``: layers times columns."""
    layer, piece = tl.program_id(1).to(tl.int64), tl.program_id(2)
    weight = tl.load(table + layer * 2).to(tl.pointer_type(like.dtype.element_ty))
    stride = tl.load(table + layer * 2 + 1) * UNIT
    if UNIT > 1:
        weight = tl.multiple_of(weight, 16)
    rank = tl.arange(0, RANK)
    ups = up + layer * stride_up_layer + rank[None, :] * stride_up_rank
    downs = down + layer * stride_down_layer + rank[:, None] * stride_down
    place, begin = tl.program_id(0) * WIDE + tl.arange(0, WIDE), piece * each
    into = sums + piece.to(tl.int64) * total
    if BY_OUTPUT:
        row, end = place[:, None], tl.minimum(begin + each, N)
        mine = tl.load(ups + row * stride_up, mask=(row < M) & (rank[None, :] < R), other=0.0)
        up_high, up_low = _halves(mine, like)
        squares = tl.zeros((WIDE, STEP), tl.float32)
        for start in range(begin, end, STEP):
            column = start + tl.arange(0, STEP)[None, :]
            inside, of_rank = (row < M) & (column < end), (rank[:, None] < R) & (column < end)
            weights = tl.load(weight + row * stride + column, mask=inside, other=0.0)
            theirs = tl.load(downs + column * stride_down_column, mask=of_rank, other=0.0)
            down_high, down_low = _halves(theirs, like)
            squares += _squares_of_tile(weights, up_high, up_low, down_high, down_low)
        tl.store(into + layer * M + place, tl.sum(squares, axis=1), mask=place < M)
    else:
        column, end = place[None, :], tl.minimum(begin + each, M)
        mine = tl.load(
            downs + column * stride_down_column, mask=(rank[:, None] < R) & (column < N), other=0.0
        )
        down_high, down_low = _halves(mine, like)
        squares = tl.zeros((STEP, WIDE), tl.float32)
        for start in range(begin, end, STEP):
            row = start + tl.arange(0, STEP)[:, None]
            inside, of_rank = (row < end) & (column < N), (row < end) & (rank[None, :] < R)
            weights = tl.load(weight + row * stride + column, mask=inside, other=0.0)
            theirs = tl.load(ups + row * stride_up, mask=of_rank, other=0.0)
            up_high, up_low = _halves(theirs, like)
            squares += _squares_of_tile(weights, up_high, up_low, down_high, down_low)
        tl.store(into + layer * N + place, tl.sum(squares, axis=0), mask=place < N)


WIDE = 64


def tiles(rank: int) -> dict[str, int]:
    """What the kernel is to know of a rank, and of how much is read at once."""
    rank = _rank(rank)
    return {"WIDE": WIDE, "STEP": 64 if rank <= 64 else 32, "RANK": rank}


class ChangedWeights:
    """Where the weights lie, on the device."""

    def __init__(self, weights: Sequence[Tensor], by_output: bool) -> None:
        flat = [weight.flatten(1) for weight in weights]
        rows = [[weight.data_ptr(), weight.stride(0)] for weight in flat]
        even = all(address % 16 == 0 and stride % UNIT == 0 for address, stride in rows)
        self._unit = UNIT if even else 1
        table = [[address, stride // self._unit] for address, stride in rows]
        self._table = torch.tensor(table, dtype=torch.int64).to(flat[0].device)
        self._like, self._by_output = flat[0].new_empty(1), by_output  # for its dtype
        self._shape = flat[0].shape

    def squares(self, up: Tensor, down: Tensor, stages: int) -> Tensor:
        count, (high, wide) = len(self._table), self._shape
        width, long = (high, wide) if self._by_output else (wide, high)
        known = tiles(up.shape[2])
        columns = triton.cdiv(width, WIDE)
        # Sums by pieces of the long axis are added up in one order: a run repeats bit for bit.
        pieces = max(1, min(triton.cdiv(long, 4 * known["STEP"]), triton.cdiv(PROGRAMS, count * columns)))
        each = triton.cdiv(triton.cdiv(long, pieces), known["STEP"]) * known["STEP"]
        sums = up.new_empty(triton.cdiv(long, each), count, width)
        _squares[(columns, count, len(sums))](
            self._table, self._like, up, down, sums, high, wide, up.shape[2], count * width, each,
            *up.stride(), *down.stride(),
            BY_OUTPUT=self._by_output, UNIT=self._unit, **known, num_warps=4, num_stages=stages,
        )  # fmt: skip
        return sums[0] if len(sums) == 1 else sums.sum(dim=0)
