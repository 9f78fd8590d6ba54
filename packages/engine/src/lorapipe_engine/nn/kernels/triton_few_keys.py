"""Triton kernels for attention on few keys, such as a caption's; explained in :mod:`.kernels`.

All keys and values of a head stay on the chip, so a row's weights are known at once, and nothing is kept for the
backward pass but query, key and value. General kernels share that out by keys, which leaves most of a card idle.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,misc,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorapipe_engine.nn.kernels.triton_kernels import _rows

PROGRAMS = 300  # that the backward pass is shared out to, about two for each multiprocessor of a large card
MOST_KEYS, MOST_WIDTH = 96, 128  # beyond these the general kernels are the faster ones


def fits(keys: int, width: int) -> bool:
    return 16 <= keys <= MOST_KEYS and width <= MOST_WIDTH


def _up(size: int) -> int:
    return max(16, int(triton.next_power_of_2(size)))


def _parts(keys: int) -> tuple[int, int]:
    """Two powers of two that hold the keys: tiles have no other sizes, and one of 128 would be half empty for 77."""
    first = 1 << (keys.bit_length() - 1)
    return first, _up(keys - first)


def tiles(first: int, wide: int) -> tuple[int, int]:
    """Rows at a time and warps of the backward pass: the gradients of keys and values stay in registers."""
    return (64, 4) if first * wide <= 64 * 64 else (32, 8)


@triton.jit
def _places(
    start, M, stride, batch, head, D: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """Where the keys from ``start`` on lie, and which of the tile there are."""
    key, column = start + tl.arange(0, KEYS), tl.arange(0, WIDE)
    there = (key[:, None] < M) & (column[None, :] < D)
    return (batch * M + key[:, None]) * stride + head * D + column[None, :], there


@triton.jit
def _tile(
    keys, start, M, stride, batch, head,
    H: tl.constexpr, D: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Keys and values from ``start`` on."""
    place, there = _places(start, M, stride, batch, head, D, KEYS, WIDE)
    return tl.load(keys + place, mask=there, other=0.0), tl.load(keys + place + H * D, mask=there, other=0.0)


@triton.jit
def _weights(query, first, second, M, scale, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """Of each row: the shares of the keys, (rows, FIRST) and (rows, SECOND)."""
    scale = scale * 1.4426950408889634  # log2(e), for powers of two
    one = tl.dot(query, tl.trans(first), input_precision="ieee") * scale
    two = tl.dot(query, tl.trans(second), input_precision="ieee") * scale
    two = tl.where(FIRST + tl.arange(0, SECOND)[None, :] < M, two, float("-inf"))
    top = tl.maximum(tl.max(one, axis=1), tl.max(two, axis=1))[:, None]
    one, two = tl.exp2(one - top), tl.exp2(two - top)
    whole = 1.0 / (tl.sum(one, axis=1) + tl.sum(two, axis=1))[:, None]
    return one * whole, two * whole


@triton.jit
def _few_forward(
    query, keys, out, N, M, stride_query, stride_keys, scale,
    H: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    row, column = tl.arange(0, ROWS) + tl.program_id(0) * ROWS, tl.arange(0, WIDE)
    here = (row[:, None] < N) & (column[None, :] < D)
    line = batch * N + row[:, None]
    k1, v1 = _tile(keys, 0, M, stride_keys, batch, head, H, D, FIRST, WIDE)
    k2, v2 = _tile(keys, FIRST, M, stride_keys, batch, head, H, D, SECOND, WIDE)
    q = tl.load(query + line * stride_query + head * D + column[None, :], mask=here, other=0.0)
    one, two = _weights(q, k1, k2, M, scale, FIRST, SECOND)
    attended = tl.dot(one.to(q.dtype), v1, input_precision="ieee")
    attended = tl.dot(two.to(q.dtype), v2, attended, input_precision="ieee")
    tl.store(out + line * (H * D) + head * D + column[None, :], attended, mask=here)


@triton.jit
def _keep(
    part, dk, dv, start, M, batch, head,
    H: tl.constexpr, D: tl.constexpr, KEYS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Into rows [key | value]."""
    place, there = _places(start, M, 2 * H * D, batch, head, D, KEYS, WIDE)
    tl.store(part + place, dk, mask=there)
    tl.store(part + place + H * D, dv, mask=there)


@triton.jit
def _few_backward(
    query, keys, grad, dquery, part, N, M, stride_query, stride_keys, stride_grad, scale, rows_each, total,
    H: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    batch, head = (tl.program_id(1) // H).to(tl.int64), tl.program_id(1) % H
    column = tl.arange(0, WIDE)
    k1, v1 = _tile(keys, 0, M, stride_keys, batch, head, H, D, FIRST, WIDE)
    k2, v2 = _tile(keys, FIRST, M, stride_keys, batch, head, H, D, SECOND, WIDE)
    dk1 = tl.zeros((FIRST, WIDE), tl.float32)
    dv1 = tl.zeros((FIRST, WIDE), tl.float32)
    dk2 = tl.zeros((SECOND, WIDE), tl.float32)
    dv2 = tl.zeros((SECOND, WIDE), tl.float32)
    begin = tl.program_id(0) * rows_each
    for start in range(begin, tl.minimum(begin + rows_each, N), ROWS):
        row = start + tl.arange(0, ROWS)
        here = (row[:, None] < N) & (column[None, :] < D)
        line = batch * N + row[:, None]
        q = tl.load(query + line * stride_query + head * D + column[None, :], mask=here, other=0.0)
        dy = tl.load(grad + line * stride_grad + head * D + column[None, :], mask=here, other=0.0)
        one, two = _weights(q, k1, k2, M, scale, FIRST, SECOND)
        dv1 = tl.dot(tl.trans(one.to(q.dtype)), dy, dv1, input_precision="ieee")
        dv2 = tl.dot(tl.trans(two.to(q.dtype)), dy, dv2, input_precision="ieee")
        done = tl.dot(dy, tl.trans(v1), input_precision="ieee")
        dtwo = tl.dot(dy, tl.trans(v2), input_precision="ieee")
        mean = (tl.sum(one * done, axis=1) + tl.sum(two * dtwo, axis=1))[:, None]
        small = (one * (done - mean) * scale).to(q.dtype)
        smaller = (two * (dtwo - mean) * scale).to(q.dtype)
        dk1 = tl.dot(tl.trans(small), q, dk1, input_precision="ieee")
        dk2 = tl.dot(tl.trans(smaller), q, dk2, input_precision="ieee")
        dq = tl.dot(small, k1, input_precision="ieee")
        dq = tl.dot(smaller, k2, dq, input_precision="ieee")
        tl.store(dquery + line * (H * D) + head * D + column[None, :], dq, mask=here)
    # Pieces lie behind each other, each with the layout of the keys.
    own = part + tl.program_id(0) * total
    _keep(own, dk1, dv1, 0, M, batch, head, H, D, FIRST, WIDE)
    _keep(own, dk2, dv2, FIRST, M, batch, head, H, D, SECOND, WIDE)


@triton.jit
def _fold(part, out, pieces, total, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    folded = tl.zeros((BLOCK,), tl.float32)
    for piece in range(0, pieces):
        folded += tl.load(part + piece * total + place, mask=place < total, other=0.0)
    tl.store(out + place, folded, mask=place < total)


def attend_few(query: Tensor, keys: Tensor, batch: int, heads: int) -> Tensor:
    query, keys = _rows(query), _rows(keys)
    rows, count = len(query) // batch, len(keys) // batch
    width = query.shape[1] // heads
    out = query.new_empty(query.shape)
    first, second = _parts(count)
    _few_forward[(triton.cdiv(rows, 64), batch * heads)](
        query, keys, out, rows, count, query.stride(0), keys.stride(0), width**-0.5,
        H=heads, D=width, ROWS=64, FIRST=first, SECOND=second, WIDE=_up(width), num_warps=4,
    )  # fmt: skip
    return out


def attend_few_backward(
    query: Tensor, keys: Tensor, grad: Tensor, batch: int, heads: int, stages: int
) -> tuple[Tensor, Tensor]:
    query, keys, grad = _rows(query), _rows(keys), _rows(grad)
    rows, count = len(query) // batch, len(keys) // batch
    width = query.shape[1] // heads
    first, second = _parts(count)
    high, warps = tiles(first, _up(width))
    pieces = min(triton.cdiv(rows, high), triton.cdiv(PROGRAMS, batch * heads))
    each = triton.cdiv(triton.cdiv(rows, pieces), high) * high
    pieces = triton.cdiv(rows, each)
    dquery, dkeys = query.new_empty(query.shape), keys.new_empty(keys.shape)
    part = query.new_empty(pieces, *keys.shape, dtype=torch.float32)
    _few_backward[(pieces, batch * heads)](
        query, keys, grad, dquery, part, rows, count, query.stride(0), keys.stride(0), grad.stride(0),
        width**-0.5, each, keys.numel(),
        H=heads, D=width, ROWS=high, FIRST=first, SECOND=second, WIDE=_up(width), num_warps=warps,
        num_stages=stages,
    )  # fmt: skip
    _fold[(triton.cdiv(keys.numel(), 1024),)](part, dkeys, pieces, keys.numel(), BLOCK=1024)
    return dquery, dkeys
