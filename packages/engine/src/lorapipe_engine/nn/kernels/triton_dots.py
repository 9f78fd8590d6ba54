"""Triton kernels that hold the network's own small products; their arguments are explained in :mod:`.kernels`.

A rank is small: a product with it is bound by the rows that it reads or writes. So each of these reads them once and
does with them all there is to do. Sums are float32.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,misc,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorapipe_engine.nn.kernels.gradients import FactorGradients
from lorapipe_engine.nn.kernels.triton_kernels import _rows

LEAST = 16  # of each side of a product in Triton


def _aligned(x: Tensor) -> Tensor:
    """x with rows on 16-byte boundaries."""
    x = _rows(x)
    return x if x.data_ptr() % 16 == 0 and x.stride(0) % 16 == 0 else _moved(x)


def _moved(x: Tensor) -> Tensor:
    rows, width = x.shape
    room = x.new_empty(rows, triton.cdiv(width, 16) * 16)
    room[:, :width] = x
    return room[:, :width]


def _rank(size: int) -> int:
    return max(LEAST, int(triton.next_power_of_2(size)))


# ------------------------------------------------------------------------------------------ lift


@triton.jit
def _lift(
    both, factor, residual, more, ratio, bias, other, into, out, kept, N, C, R,
    stride_both, stride_rank, stride_column, stride_residual, stride_more, stride_other,
    RESIDUAL: tl.constexpr, MORE: tl.constexpr, DEEP: tl.constexpr, RATIO: tl.constexpr, BIAS: tl.constexpr,
    SUMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANK)
    inside = (row[:, None] < N) & (column[None, :] < C)
    of_rank = (row[:, None] < N) & (rank[None, :] < R)
    line = row[:, None].to(tl.int64)
    hidden = tl.load(both + line * stride_both + C + rank[None, :], mask=of_rank, other=0.0)
    if DEEP:
        deeper = tl.load(more + line * stride_more + C + rank[None, :], mask=of_rank, other=0.0)
        hidden = (hidden.to(tl.float32) + deeper.to(tl.float32)).to(both.dtype.element_ty)
    place = factor + rank[:, None] * stride_rank + column[None, :] * stride_column
    weights = tl.load(place, mask=(rank[:, None] < R) & (column[None, :] < C), other=0.0)
    values = tl.load(both + line * stride_both + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if RATIO:
        values += tl.dot(hidden, weights, input_precision="ieee")
        if SUMS:
            beside = tl.load(other + line * stride_other + column[None, :], mask=inside, other=0.0)
            total = tl.sum(values * beside.to(tl.float32), axis=0)
            tl.atomic_add(into + column, total, mask=column < C, sem="relaxed")
        values *= tl.load(ratio + column, mask=column < C, other=0.0).to(tl.float32)[None, :]
    if BIAS:
        values += tl.load(bias + column, mask=column < C, other=0.0).to(tl.float32)[None, :]
    if RESIDUAL:
        added = tl.load(residual + line * stride_residual + column[None, :], mask=inside, other=0.0)
        values += added.to(tl.float32)
    if MORE:
        added = tl.load(more + line * stride_more + column[None, :], mask=inside, other=0.0)
        values += added.to(tl.float32)
    if not RATIO:
        values += tl.dot(hidden, weights, input_precision="ieee")
    tl.store(out + line * C + column[None, :], values, mask=inside)
    if tl.program_id(1) == 0:
        tl.store(kept + line * R + rank[None, :], hidden, mask=of_rank)


def lift(
    both: Tensor,
    factor: Tensor,
    residual: Tensor | None,
    more: Tensor | None = None,
    ratio: Tensor | None = None,
    bias: Tensor | None = None,
    sums: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    size, width = factor.shape
    rows = len(both)
    out, kept = both.new_empty(rows, width), both.new_empty(rows, size)
    first, second = (out if part is None else _rows(part) for part in (residual, more))
    other, into = (out, out) if sums is None else (_rows(sums[0]), sums[1])
    high, wide = (64, 128) if rows >= 2048 else (32, 64)
    _lift[(triton.cdiv(rows, high), triton.cdiv(width, wide))](
        both, factor, first, second, out if ratio is None else ratio, out if bias is None else bias, other, into,
        out, kept, rows, width, size,
        both.stride(0), factor.stride(0), factor.stride(1), first.stride(0), second.stride(0), other.stride(0),
        RESIDUAL=residual is not None, MORE=more is not None, DEEP=more is not None and more.shape[1] > width,
        RATIO=ratio is not None, BIAS=bias is not None, SUMS=sums is not None,
        ROWS=high, COLUMNS=wide, RANK=_rank(size), num_warps=4,
    )  # fmt: skip
    return out, kept


# ------------------------------------------------------------------------------------------ magnitudes


@triton.jit
def _scale_columns(
    parts, ratio, other, out, into, N, C, stride_part, stride_x, stride_other,
    COUNT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = column < C
    inside = (row[:, None] < N) & here[None, :]
    line = row[:, None].to(tl.int64)
    beside = tl.load(other + line * stride_other + column[None, :], mask=inside, other=0.0).to(tl.float32)
    summed = tl.zeros((ROWS, COLUMNS), tl.float32)
    place = parts + line * stride_x + column[None, :]
    for part in tl.static_range(COUNT):
        values = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        tl.atomic_add(into + part * C + column, tl.sum(values * beside, axis=0), mask=here, sem="relaxed")
        own = tl.load(ratio + part * C + column, mask=here, other=0.0).to(tl.float32)
        summed += values * own[None, :]
        place += stride_part
    tl.store(out + line * C + column[None, :], summed, mask=inside)


def scale_columns(x: Tensor, ratio: Tensor, other: Tensor, into: Tensor) -> Tensor:
    return sum_scaled(_rows(x)[None], ratio, other, into)


def sum_scaled(parts: Tensor, ratio: Tensor, other: Tensor, into: Tensor) -> Tensor:
    ratio, other = ratio.contiguous(), _rows(other)
    count, rows, width = parts.shape
    out = parts.new_empty(rows, width)
    _scale_columns[(triton.cdiv(rows, 128), triton.cdiv(width, 64))](
        parts, ratio, other, out, into, rows, width, parts.stride(0), parts.stride(1), other.stride(0),
        COUNT=count, ROWS=128, COLUMNS=64, num_warps=4,
    )  # fmt: skip
    return out


# ------------------------------------------------------------------------------------------ gradients of factors

FIELDS = 13  # of a slot, what a pack's products read: addresses, distances between rows, and their number


@triton.jit
def _note(slots, numbers):
    for place in tl.static_range(len(numbers)):
        tl.store(slots + place, numbers[place])


@triton.jit
def _factors(
    jobs, scales, slots, like, like_target, rows_each,
    UNIT: tl.constexpr, RANK_UNIT: tl.constexpr, FIELDS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """``jobs``: the slot, which of x and the dys in it, first column and columns from there, first rank and ranks,
    address of the gradient and its distances from column to column and from rank to rank. Columns are counted in
    units of UNIT, ranks of RANK_UNIT; that and the hints let the compiler read several numbers at once."""
    job = jobs + tl.program_id(0) * 9
    slot, which = slots + tl.load(job) * FIELDS, tl.load(job + 1)
    rows = tl.load(slot + 12)
    begin = tl.program_id(1) * rows_each
    if begin < rows:
        first, columns = tl.load(job + 2) * UNIT, tl.load(job + 3) * UNIT
        first_rank, ranks = tl.load(job + 4) * RANK_UNIT, tl.load(job + 5) * RANK_UNIT
        own = tl.where(which == 0, 5, 4)
        wide = tl.multiple_of(tl.load(slot + which).to(tl.pointer_type(like.dtype.element_ty)), 16)
        small = tl.multiple_of(tl.load(slot + own).to(tl.pointer_type(like.dtype.element_ty)), 16)
        stride_wide = tl.multiple_of(tl.load(slot + 6 + which), 16)
        stride_small = tl.multiple_of(tl.load(slot + 6 + own), 16)
        column, rank = tl.arange(0, COLUMNS), tl.arange(0, RANK)
        end = tl.minimum(begin + rows_each, rows)
        total = tl.zeros((COLUMNS, RANK), tl.float32)
        for start in range(begin, end, ROWS):
            row = (start + tl.arange(0, ROWS))[:, None]
            of_wide = (row < end) & (column[None, :] < columns)
            of_small = (row < end) & (rank[None, :] < ranks)
            left = tl.load(wide + row * stride_wide + first + column[None, :], mask=of_wide, other=0.0)
            right = tl.load(small + row * stride_small + first_rank + rank[None, :], mask=of_small, other=0.0)
            total = tl.dot(tl.trans(left), right, total, input_precision="ieee")
        target = tl.load(job + 6).to(tl.pointer_type(like_target.dtype.element_ty))
        place = target + column[:, None] * tl.load(job + 7) + rank[None, :] * tl.load(job + 8)
        inside = (column[:, None] < columns) & (rank[None, :] < ranks)
        tl.atomic_add(place, total * tl.load(scales + tl.program_id(0)), mask=inside, sem="relaxed")


COLUMNS, ROWS, PROGRAMS = 64, 64, 300


class FactorBatch:
    """The products of several packs, always the same ones."""

    def __init__(self, packs: Sequence[tuple[FactorGradients, bool]]) -> None:
        self._kept = [into for into, _ in packs]
        self._rank = _rank(max(len(down) for into in self._kept for down in into.downs))
        rows = [(slot, job) for slot, (into, apart) in enumerate(packs) for job in _jobs(into, apart)]
        self._unit = math.gcd(16, *(number for _, (numbers, _) in rows for number in numbers[1:3]))
        self._rank_unit = math.gcd(16, *(number for _, (numbers, _) in rows for number in numbers[3:5]))
        units = [1, self._unit, self._unit, self._rank_unit, self._rank_unit, 1, 1, 1]
        table = [
            [slot, *(number // unit for number, unit in zip(numbers, units, strict=True))]
            for slot, (numbers, _) in rows
        ]
        device = self._kept[0].downs[0].device
        self._jobs = torch.tensor(table, dtype=torch.int64, device=device)
        self._scales = torch.tensor([scale for _, (_, scale) in rows], dtype=torch.float32, device=device)
        self._slots = torch.zeros(len(packs), FIELDS, dtype=torch.int64, device=device)

    def add(self, reads: Sequence[tuple[Tensor, Tensor, Sequence[Tensor], Tensor]]) -> None:
        kept: list[Tensor] = []  # copies must outlive the kernel's start
        numbers: list[int] = []
        for x, hidden, dys, dhidden in reads:
            parts = [_aligned(part) for part in (x, *(list(dys) * 3)[:3], hidden, dhidden)]
            numbers += [*(part.data_ptr() for part in parts), *(part.stride(0) for part in parts), len(x)]
            kept += parts
        _note[(1,)](self._slots, tuple(numbers), num_warps=1)
        most, jobs = max(len(part) for part in kept), len(self._jobs)
        pieces = max(1, min(triton.cdiv(most, 256), triton.cdiv(PROGRAMS, jobs)))
        each = triton.cdiv(triton.cdiv(most, pieces), ROWS) * ROWS
        _factors[(jobs, triton.cdiv(most, each))](
            self._jobs, self._scales, self._slots, kept[0], self._kept[0].downs[0], each,
            UNIT=self._unit, RANK_UNIT=self._rank_unit, ROWS=ROWS, COLUMNS=COLUMNS, RANK=self._rank, FIELDS=FIELDS,
            num_warps=4, num_stages=3,
        )  # fmt: skip


def _jobs(into: FactorGradients, apart: bool) -> Iterator[tuple[list[int], float]]:
    """Rows of the table of jobs without their slots, and the number that each result is multiplied with."""
    place, first_rank = 0, 0
    for index, (down, up, scale) in enumerate(zip(into.downs, into.ups, into.scales, strict=True)):
        (ranks, width), out = down.shape, len(up)
        for start in range(0, width, COLUMNS):
            address = down.data_ptr() + start * down.element_size()
            yield [0, start, min(COLUMNS, width - start), first_rank, ranks, address, 1, width], 1.0
        which, begin = (1 + index, 0) if apart else (1, place)
        for start in range(0, out, COLUMNS):
            address = up.data_ptr() + start * ranks * up.element_size()
            yield (
                [which, begin + start, min(COLUMNS, out - start), first_rank, ranks, address, ranks, 1],
                scale,
            )
        place, first_rank = place + out, first_rank + ranks
