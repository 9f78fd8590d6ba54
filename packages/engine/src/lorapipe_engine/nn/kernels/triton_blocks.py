"""Triton kernels that turn rows by blocks of their channels; their arguments are explained in :mod:`.kernels`.

A block is small, so rows are read and written once and that is what it costs. Blocks below a tile of the card's matrix
units are put together in one, with zeros between them. Rows may be laid by channels, each channel in one piece: then a
block whose channels lie apart is read in pieces as long as those of others.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,misc,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorapipe_engine.nn.kernels.blocks import TILE, Blocks, is_by_channels
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
def _at(line, channel, stride, BY_CHANNELS: tl.constexpr):
    """Where rows have their values. ``stride``: from one row to the next, or from one channel to the next."""
    if BY_CHANNELS:
        place = line + channel[None, :].to(tl.int64) * stride
    else:
        place = line * stride + channel[None, :]
    return place


@triton.jit
def _rotate(
    rows, bias, change, turns, out, N, C, rows_each, stride_rows, stride_change, stride_out,
    BIAS: tl.constexpr, CHANGE: tl.constexpr, WHOLE: tl.constexpr, BY_CHANNELS: tl.constexpr,
    HIGH: tl.constexpr, INNER: tl.constexpr, LOW: tl.constexpr, TOGETHER: tl.constexpr,
    ROWS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    channel, here, block, number = _place(tile, C, HIGH, INNER, LOW, TOGETHER, SIDE)
    place, pairs = _matrix(tile, here, block, number, TOGETHER, HIGH * LOW)
    matrix = tl.load(turns + place, mask=pairs, other=0.0).to(rows.dtype.element_ty)
    begin = tl.program_id(1) * rows_each
    for start in range(begin, tl.minimum(begin + rows_each, N), ROWS):
        row = start + tl.arange(0, ROWS)
        line, inside = row[:, None].to(tl.int64), (row[:, None] < N) & here[None, :]
        given = tl.load(rows + _at(line, channel, stride_rows, BY_CHANNELS), mask=inside, other=0.0)
        values = given.to(tl.float32)
        total = tl.zeros((ROWS, SIDE), tl.float32)
        if WHOLE:
            total += values
        if BIAS:
            values -= tl.load(bias + channel, mask=here, other=0.0).to(tl.float32)[None, :]
        if CHANGE:
            moved = tl.load(change + _at(line, channel, stride_change, BY_CHANNELS), mask=inside, other=0.0)
            values += moved.to(tl.float32)
            total += moved.to(tl.float32)
        total += tl.dot(values.to(rows.dtype.element_ty), matrix, input_precision="ieee")
        tl.store(out + _at(line, channel, stride_out, BY_CHANNELS), total, mask=inside)


@triton.jit
def _rotate_back(
    rows, bias, change, grad, also, turns, into, out, N, C, rows_each,
    stride_rows, stride_change, stride_grad, stride_also, stride_out,
    BIAS: tl.constexpr, CHANGE: tl.constexpr, ALSO: tl.constexpr, WHOLE: tl.constexpr, BY_CHANNELS: tl.constexpr,
    HIGH: tl.constexpr, INNER: tl.constexpr, LOW: tl.constexpr, TOGETHER: tl.constexpr,
    ROWS: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    channel, here, block, number = _place(tile, C, HIGH, INNER, LOW, TOGETHER, SIDE)
    place, pairs = _matrix(tile, here, block, number, TOGETHER, HIGH * LOW)
    begin = (
        tl.program_id(1) * rows_each
    )  # a multiple of the rows of a tile, so no tile reaches into the next program's
    matrix = tl.trans(tl.load(turns + place, mask=pairs, other=0.0))
    summed = tl.zeros((SIDE, SIDE), tl.float32)
    for start in range(begin, tl.minimum(begin + rows_each, N), ROWS):
        row = start + tl.arange(0, ROWS)
        line, inside = row[:, None].to(tl.int64), (row[:, None] < N) & here[None, :]
        given = tl.load(rows + _at(line, channel, stride_rows, BY_CHANNELS), mask=inside, other=0.0)
        values = given.to(tl.float32)
        if BIAS:
            values -= tl.load(bias + channel, mask=here, other=0.0).to(tl.float32)[None, :]
        if CHANGE:
            moved = tl.load(change + _at(line, channel, stride_change, BY_CHANNELS), mask=inside, other=0.0)
            values += moved.to(tl.float32)
        values = tl.where(inside, values, 0.0)
        given = tl.load(grad + _at(line, channel, stride_grad, BY_CHANNELS), mask=inside, other=0.0)
        reached = given.to(tl.float32)
        total = tl.zeros((ROWS, SIDE), tl.float32)
        if WHOLE:
            total += reached
        if ALSO:
            more = tl.load(also + _at(line, channel, stride_also, BY_CHANNELS), mask=inside, other=0.0)
            reached += more.to(tl.float32)
            total += more.to(tl.float32)
        summed = tl.dot(
            tl.trans(values.to(rows.dtype.element_ty)),
            reached.to(rows.dtype.element_ty),
            summed,
            input_precision="ieee",
        )
        total += tl.dot(
            reached.to(rows.dtype.element_ty), matrix.to(rows.dtype.element_ty), input_precision="ieee"
        )
        tl.store(out + _at(line, channel, stride_out, BY_CHANNELS), total, mask=inside)
    tl.atomic_add(into + place, summed, mask=pairs, sem="relaxed")


@triton.jit
def _lay(
    rows, out, N, C, stride_rows, stride_out, FROM_CHANNELS: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    line, inside = row[:, None].to(tl.int64), (row[:, None] < N) & (channel[None, :] < C)
    values = tl.load(rows + _at(line, channel, stride_rows, FROM_CHANNELS), mask=inside, other=0.0)
    tl.store(out + _at(line, channel, stride_out, not FROM_CHANNELS), values, mask=inside)


def lay(rows: Tensor, by_channels: bool) -> Tensor:
    (rows, _), (distance, _) = _laid(rows, not by_channels, rows)
    out = _empty(rows, by_channels)
    _lay[(triton.cdiv(len(rows), 64), triton.cdiv(rows.shape[1], 64))](
        rows, out, *rows.shape, distance, out.stride(1 if by_channels else 0),
        FROM_CHANNELS=not by_channels, ROWS=64, WIDE=64, num_warps=4,
    )  # fmt: skip
    return out


def tiles(blocks: Blocks, by_channels: bool = False) -> tuple[int, dict[str, int]]:
    """How many tiles a row has, and what the kernels are to know of them."""
    together = max(1, TILE // blocks.size) if blocks.inner == blocks.high == 1 else 1
    side = max(16, int(triton.next_power_of_2(together * blocks.size)))
    count, is_small = triton.cdiv(blocks.outer, together) * blocks.inner, side <= TILE
    return count, {
        "HIGH": blocks.high, "INNER": blocks.inner, "LOW": blocks.low, "TOGETHER": together, "SIDE": side,
        "ROWS": 128 if by_channels and is_small else 64, "num_warps": 4 if is_small else 8,
        "num_stages": 3 if by_channels and not is_small else 2,
    }  # fmt: skip


def _laid(out: Tensor, by_channels: bool, *parts: Tensor | None) -> tuple[list[Tensor], list[int]]:
    """Parts of the shape of ``out`` laid as that is, ``out`` itself for those that are None, and last ``out``; and how
    far a row, or a channel, of each is from the next."""
    laid = [out if part is None else _rows(part.mT).mT if by_channels else _rows(part) for part in parts]
    return [*laid, out], [part.stride(1 if by_channels else 0) for part in (*laid, out)]


def _empty(rows: Tensor, by_channels: bool) -> Tensor:
    return (
        torch.empty_like(rows.mT, memory_format=torch.contiguous_format).mT
        if by_channels
        else rows.new_empty(rows.shape)
    )


def _shared_out(rows: int, tiles: int, high: int) -> tuple[int, int]:
    """How many programs share the rows of a tile, and how many rows each of them has, a multiple of ``high``."""
    pieces = max(1, min(triton.cdiv(rows, high), triton.cdiv(PROGRAMS, tiles)))
    each = triton.cdiv(triton.cdiv(rows, pieces), high) * high
    return triton.cdiv(rows, each), each


def rotate(
    rows: Tensor, bias: Tensor | None, change: Tensor | None, turns: Tensor, blocks: Blocks, whole: bool
) -> Tensor:
    by_channels, turns = is_by_channels(rows), turns.contiguous()
    (rows, moved, out), strides = _laid(_empty(rows, by_channels), by_channels, rows, change)
    count, known = tiles(blocks, by_channels)
    if not by_channels and len(rows) >= 2048 and known["SIDE"] <= TILE:
        known["ROWS"] = 128  # for which a program reads its matrix
    high = known["ROWS"]
    pieces, each = (
        _shared_out(len(rows), count, high) if by_channels else (triton.cdiv(len(rows), high), high)
    )
    _rotate[(count, pieces)](
        rows, rows if bias is None else bias, moved, turns, out, *rows.shape, each, *strides,
        BIAS=bias is not None, CHANGE=change is not None, WHOLE=whole, BY_CHANNELS=by_channels, **known,
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
    by_channels, turns = is_by_channels(rows), turns.contiguous()
    parts, strides = _laid(_empty(rows, by_channels), by_channels, rows, change, grad, also)
    rows, moved, grad, more, out = parts
    count, known = tiles(blocks, by_channels)
    pieces, each = _shared_out(len(rows), count, known["ROWS"])
    _rotate_back[(count, pieces)](
        rows, rows if bias is None else bias, moved, grad, more, turns, into, out, *rows.shape, each, *strides,
        BIAS=bias is not None, CHANGE=change is not None, ALSO=also is not None, WHOLE=whole,
        BY_CHANNELS=by_channels, **known,
    )  # fmt: skip
    return out
