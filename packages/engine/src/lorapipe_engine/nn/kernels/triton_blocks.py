"""Triton kernels that turn rows by blocks of their channels; their arguments are explained in :mod:`.kernels`.

A block is small, so rows are read and written once and that is what it costs. Blocks below a tile of the card's matrix
units are put together in one, with zeros between them.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,misc,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lorapipe_engine.nn.kernels.blocks import TILE, Blocks
from lorapipe_engine.nn.kernels.triton_kernels import _rows

PROGRAMS = 600  # that fill a card


@triton.jit
def _place(
    tile, C, HIGH: tl.constexpr, INNER: tl.constexpr, LOW: tl.constexpr, TOGETHER: tl.constexpr, SIDE: tl.constexpr
):  # fmt: skip
    """The channels of a tile, which of its places have one, and each place's block among those of the tile."""
    number = tl.arange(0, SIDE)
    block, of_block = number // (HIGH * LOW), number % (HIGH * LOW)
    if HIGH * INNER == 1:  # side by side: several are read at once
        channel = tile * (TOGETHER * LOW) + number
    else:
        channel = (((tile // INNER) * HIGH + of_block // LOW) * INNER + tile % INNER) * LOW + of_block % LOW
    return channel, (number < TOGETHER * HIGH * LOW) & (channel < C), block, of_block


@triton.jit
def _matrix(tile, here, block, number, TOGETHER: tl.constexpr, SIZE: tl.constexpr):
    """Where the values of the tile's blocks lie, and which pairs of places have one."""
    first = (tile * TOGETHER + block[:, None]) * (SIZE * SIZE)
    pairs = here[:, None] & here[None, :] & (block[:, None] == block[None, :])
    return first + number[:, None] * SIZE + number[None, :], pairs


@triton.jit
def _rotate(
    rows, bias, change, turns, out, N, C, stride_rows, stride_change,
    BIAS: tl.constexpr, CHANGE: tl.constexpr, WHOLE: tl.constexpr,
    HIGH: tl.constexpr, INNER: tl.constexpr, LOW: tl.constexpr, TOGETHER: tl.constexpr,
    ROWS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    channel, here, block, number = _place(tile, C, HIGH, INNER, LOW, TOGETHER, SIDE)
    place, pairs = _matrix(tile, here, block, number, TOGETHER, HIGH * LOW)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    line, inside = row[:, None].to(tl.int64), (row[:, None] < N) & here[None, :]
    given = tl.load(rows + line * stride_rows + channel[None, :], mask=inside, other=0.0)
    values = given.to(tl.float32)
    total = tl.zeros((ROWS, SIDE), tl.float32)
    if WHOLE:
        total += values
    if BIAS:
        values -= tl.load(bias + channel, mask=here, other=0.0).to(tl.float32)[None, :]
    if CHANGE:
        more = tl.load(change + line * stride_change + channel[None, :], mask=inside, other=0.0).to(
            tl.float32
        )
        values += more
        total += more
    matrix = tl.load(turns + place, mask=pairs, other=0.0).to(rows.dtype.element_ty)
    total += tl.dot(values.to(rows.dtype.element_ty), matrix, input_precision="ieee")
    tl.store(out + line * C + channel[None, :], total, mask=inside)


@triton.jit
def _rotate_back(
    rows, bias, change, grad, also, turns, into, out, N, C, rows_each,
    stride_rows, stride_change, stride_grad, stride_also,
    BIAS: tl.constexpr, CHANGE: tl.constexpr, ALSO: tl.constexpr, WHOLE: tl.constexpr,
    HIGH: tl.constexpr, INNER: tl.constexpr, LOW: tl.constexpr, TOGETHER: tl.constexpr,
    ROWS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    channel, here, block, number = _place(tile, C, HIGH, INNER, LOW, TOGETHER, SIDE)
    place, pairs = _matrix(tile, here, block, number, TOGETHER, HIGH * LOW)
    begin = tl.program_id(1) * rows_each
    end = tl.minimum(begin + rows_each, N)
    matrix = tl.trans(tl.load(turns + place, mask=pairs, other=0.0))
    summed = tl.zeros((SIDE, SIDE), tl.float32)
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)
        line, inside = row[:, None].to(tl.int64), (row[:, None] < end) & here[None, :]
        given = tl.load(rows + line * stride_rows + channel[None, :], mask=inside, other=0.0)
        values = given.to(tl.float32)
        if BIAS:
            values -= tl.load(bias + channel, mask=here, other=0.0).to(tl.float32)[None, :]
        if CHANGE:
            moved = tl.load(change + line * stride_change + channel[None, :], mask=inside, other=0.0)
            values += moved.to(tl.float32)
        values = tl.where(inside, values, 0.0)
        reached = tl.load(grad + line * stride_grad + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        total = tl.zeros((ROWS, SIDE), tl.float32)
        if WHOLE:
            total += reached
        if ALSO:
            more = tl.load(also + line * stride_also + channel[None, :], mask=inside, other=0.0).to(
                tl.float32
            )
            reached += more
            total += more
        summed = tl.dot(
            tl.trans(values.to(rows.dtype.element_ty)),
            reached.to(rows.dtype.element_ty),
            summed,
            input_precision="ieee",
        )
        total += tl.dot(
            reached.to(rows.dtype.element_ty), matrix.to(rows.dtype.element_ty), input_precision="ieee"
        )
        tl.store(out + line * C + channel[None, :], total, mask=inside)
    tl.atomic_add(into + place, summed, mask=pairs, sem="relaxed")


def tiles(blocks: Blocks) -> tuple[int, dict[str, int]]:
    """How many tiles a row has, and what the kernels are to know of them."""
    together = max(1, TILE // blocks.size) if blocks.inner == blocks.high == 1 else 1
    side = max(16, int(triton.next_power_of_2(together * blocks.size)))
    count = triton.cdiv(blocks.outer, together) * blocks.inner
    return count, {
        "HIGH": blocks.high, "INNER": blocks.inner, "LOW": blocks.low, "TOGETHER": together,
        "ROWS": 64, "SIDE": side, "num_warps": 4 if side <= TILE else 8, "num_stages": 2,
    }  # fmt: skip


def rotate(
    rows: Tensor, bias: Tensor | None, change: Tensor | None, turns: Tensor, blocks: Blocks, whole: bool
) -> Tensor:
    rows, turns = _rows(rows), turns.contiguous()
    out = rows.new_empty(rows.shape)
    moved = out if change is None else _rows(change)
    count, known = tiles(blocks)
    if len(rows) >= 2048 and known["SIDE"] <= TILE:  # a program's matrix is then read for more rows
        known["ROWS"] = 128
    _rotate[(count, triton.cdiv(len(rows), known["ROWS"]))](
        rows, rows if bias is None else bias, moved, turns, out, *rows.shape, rows.stride(0), moved.stride(0),
        BIAS=bias is not None, CHANGE=change is not None, WHOLE=whole, **known,
    )  # fmt: skip
    return out


def rotate_back(
    rows: Tensor,
    bias: Tensor | None,
    change: Tensor | None,
    grad: Tensor,
    also: Tensor | None,
    turns: Tensor,
    blocks: Blocks,
    into: Tensor,
    whole: bool,
) -> Tensor:
    rows, grad, turns = _rows(rows), _rows(grad), turns.contiguous()
    out = rows.new_empty(rows.shape)
    moved, more = (out if part is None else _rows(part) for part in (change, also))
    count, known = tiles(blocks)
    high = known["ROWS"]
    pieces = max(1, min(triton.cdiv(len(rows), high), triton.cdiv(PROGRAMS, count)))
    each = triton.cdiv(triton.cdiv(len(rows), pieces), high) * high
    _rotate_back[(count, triton.cdiv(len(rows), each))](
        rows, rows if bias is None else bias, moved, grad, more, turns, into, out, *rows.shape, each,
        rows.stride(0), moved.stride(0), grad.stride(0), more.stride(0),
        BIAS=bias is not None, CHANGE=change is not None, ALSO=also is not None, WHOLE=whole, **known,
    )  # fmt: skip
    return out
