"""Triton kernels behind :mod:`.kernels`; their arguments are explained there.

Each works on rows of channels; sums are float32. Numbers of a layout are compile-time constants where they are few for
a model, so that divisions become shifts and multiplications.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,misc,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorapipe_engine.nn.sending import sent


def _rows(x: Tensor) -> Tensor:
    """x itself where its rows, of any length, follow each other at one distance, as those of a slice of channels do
    (the gradient of a skip connection is one); else a copy."""
    even = x.dim() == 2 or x.stride(0) == x.shape[1] * x.stride(1)
    return x if x.stride(-1) == 1 and even else x.contiguous()


# ------------------------------------------------------------------------------------------ activations


@triton.jit
def _share_of(gate, KIND: tl.constexpr):
    if KIND == 2:
        share = tl.sigmoid(1.702 * gate)
        slope = share + 1.702 * gate * share * (1.0 - share)
    else:
        share = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
        slope = share + gate * tl.exp(-0.5 * gate * gate) * 0.3989422804014327
    return share, slope


@triton.jit
def _activate(inner, ratio, out, stride_out, F, KIND: tl.constexpr, RATIO: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < F
    if KIND == 0:
        value = tl.load(inner + row * (2 * F) + column, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(inner + row * (2 * F) + F + column, mask=inside, other=0.0).to(tl.float32)
    else:
        gate = tl.load(inner + row * F + column, mask=inside, other=0.0).to(tl.float32)
        value = 1.0
    share, _ = _share_of(gate, KIND)
    active = value * gate * share
    if RATIO:
        active *= tl.load(ratio + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * stride_out + column, active, mask=inside)


@triton.jit
def _activate_backward(
    inner, grad, into, active, stride_grad, F, KIND: tl.constexpr, AGAIN: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < F
    dy = tl.load(grad + row * stride_grad + column, mask=inside, other=0.0).to(tl.float32)
    if KIND == 0:
        place = row * (2 * F) + column
        value = tl.load(inner + place, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(inner + place + F, mask=inside, other=0.0).to(tl.float32)
        share, slope = _share_of(gate, KIND)
        tl.store(into + place, dy * gate * share, mask=inside)
        tl.store(into + place + F, dy * value * slope, mask=inside)
    else:
        place = row * F + column
        value = 1.0
        gate = tl.load(inner + place, mask=inside, other=0.0).to(tl.float32)
        share, slope = _share_of(gate, KIND)
        tl.store(into + place, dy * slope, mask=inside)
    if AGAIN:
        tl.store(active + row * stride_grad + column, value * gate * share, mask=inside)


def activate(kind: int, inner: Tensor, out: Tensor, ratio: Tensor | None = None) -> None:
    inner = inner.contiguous()
    rows, width = out.shape
    _activate[(rows, triton.cdiv(width, 1024))](
        inner, out if ratio is None else ratio, out, out.stride(0), width,
        KIND=kind, RATIO=ratio is not None, BLOCK=1024, num_warps=4,
    )  # fmt: skip


def activate_backward(kind: int, inner: Tensor, grad: Tensor, apart: bool = False) -> tuple[Tensor, Tensor]:
    inner, grad = inner.contiguous(), _rows(grad)
    rows, width = grad.shape
    into = torch.empty_like(inner) if apart else inner
    _activate_backward[(rows, triton.cdiv(width, 1024))](
        inner, grad, into, grad, grad.stride(0), width, KIND=kind, AGAIN=not apart, BLOCK=1024, num_warps=4
    )
    return into, grad


@triton.jit
def _activate_scaled_backward(
    inner, grad, ratio, sums, N, F, stride_grad, KIND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row[:, None] < N) & (column[None, :] < F)
    line = row[:, None].to(tl.int64)
    of_grad = grad + line * stride_grad + column[None, :]
    dy = tl.load(of_grad, mask=inside, other=0.0).to(tl.float32)
    own = tl.load(ratio + column, mask=column < F, other=0.0).to(tl.float32)[None, :]
    if KIND == 0:
        place = inner + line * (2 * F) + column[None, :]
        value = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(place + F, mask=inside, other=0.0).to(tl.float32)
        share, slope = _share_of(gate, KIND)
        active = value * gate * share
        tl.store(place, dy * own * gate * share, mask=inside)
        tl.store(place + F, dy * own * value * slope, mask=inside)
    else:
        place = inner + line * F + column[None, :]
        gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        share, slope = _share_of(gate, KIND)
        active = gate * share
        tl.store(place, dy * own * slope, mask=inside)
    tl.store(of_grad, active, mask=inside)
    tl.atomic_add(sums + column, tl.sum(dy * active, axis=0), mask=column < F, sem="relaxed")


def activate_scaled_backward(
    kind: int, inner: Tensor, grad: Tensor, ratio: Tensor, into: Tensor
) -> tuple[Tensor, Tensor]:
    inner, grad = inner.contiguous(), _rows(grad)
    rows, width = grad.shape
    _activate_scaled_backward[(triton.cdiv(rows, 64), triton.cdiv(width, 128))](
        inner, grad, ratio, into, rows, width, grad.stride(0), KIND=kind, ROWS=64, COLUMNS=128, num_warps=8
    )
    return inner, grad


# ------------------------------------------------------------------------------------------ sums and copies

WIDE = 64


@triton.jit
def _add_bias(
    x, bias, also, more, N, stride_also, stride_more, C,
    ALSO: tl.constexpr, MORE: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    inside = (row[:, None] < N) & (column[None, :] < C)
    place = row[:, None] * C + column[None, :]
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    values += tl.load(bias + column, mask=column < C, other=0.0).to(tl.float32)[None, :]
    if ALSO:
        place_also = row[:, None] * stride_also + column[None, :]
        values += tl.load(also + place_also, mask=inside, other=0.0).to(tl.float32)
    if MORE:
        place_more = row[:, None] * stride_more + column[None, :]
        values += tl.load(more + place_more, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + place, values, mask=inside)


def add_bias(x: Tensor, bias: Tensor, also: Tensor | None, more: Tensor | None = None) -> None:
    rows, width = x.shape
    first, second = (x if part is None else _rows(part) for part in (also, more))
    _add_bias[(triton.cdiv(rows, 64), triton.cdiv(width, WIDE))](
        x, bias, first, second, rows, first.stride(0), second.stride(0), width,
        ALSO=also is not None, MORE=more is not None, ROWS=64, WIDE=WIDE,
    )  # fmt: skip


@triton.jit
def _sum_rows(x, into, N, C, stride, ROWS: tl.constexpr, WIDE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    here = column < C
    inside = (row[:, None] < N) & here[None, :]
    values = tl.load(x + row[:, None] * stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.atomic_add(into + column, tl.sum(values, axis=0), mask=here, sem="relaxed")


def sum_rows(x: Tensor, into: Tensor) -> None:
    x = _rows(x)
    rows, width = x.shape
    _sum_rows[(triton.cdiv(rows, 128), triton.cdiv(width, WIDE))](
        x, into, rows, width, x.stride(0), ROWS=128, WIDE=WIDE
    )


@triton.jit
def _turn(weight, out, outs, ins, taps, BLOCK: tl.constexpr):
    tap = tl.program_id(2)
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (o[:, None] < outs) & (i[None, :] < ins)
    values = tl.load(weight + (o[:, None] * taps + tap) * ins + i[None, :], mask=inside)
    place = (i[:, None] * taps + (taps - 1 - tap)) * outs + o[None, :]
    tl.store(out + place, tl.trans(values), mask=(i[:, None] < ins) & (o[None, :] < outs))


def turned(weight: Tensor) -> Tensor:
    wide, narrow, height, width = weight.shape
    out = torch.empty(
        (narrow, wide, height, width),
        dtype=weight.dtype,
        device=weight.device,
        memory_format=torch.channels_last,
    )
    _turn[(triton.cdiv(wide, 64), triton.cdiv(narrow, 64), height * width)](
        weight, out, wide, narrow, height * width, BLOCK=64
    )
    return out


@triton.jit
def _copy_many(table, scales, job, like_source, like_target, BLOCK: tl.constexpr):
    """``table``: address of source and target, columns, row length of the target, size; ``job``: which row of it, and
    where to begin."""
    entry = tl.load(job + tl.program_id(0) * 2)
    start = tl.load(job + tl.program_id(0) * 2 + 1)
    source = tl.load(table + entry * 5).to(tl.pointer_type(like_source.dtype.element_ty))
    target = tl.load(table + entry * 5 + 1).to(tl.pointer_type(like_target.dtype.element_ty))
    # In 32 bits: dividing numbers of 64 takes longer than the copy.
    columns = tl.load(table + entry * 5 + 2).to(tl.int32)
    stride = tl.load(table + entry * 5 + 3).to(tl.int32)
    size = tl.load(table + entry * 5 + 4).to(tl.int32)
    place = start.to(tl.int32) + tl.arange(0, BLOCK)
    inside = place < size
    values = tl.load(source + place, mask=inside, other=0.0) * tl.load(scales + entry)
    tl.store(target + (place // columns) * stride + place % columns, values, mask=inside)


class CopyTable:
    """The list of copies on the device."""

    BLOCK = 4096

    def __init__(self, sources: Sequence[Tensor], targets: Sequence[Tensor], scales: Sequence[float]) -> None:
        device = targets[0].device
        rows = [
            [source.data_ptr(), target.data_ptr(), source.shape[1], target.stride(0), source.numel()]
            for source, target in zip(sources, targets, strict=True)
        ]
        table = torch.tensor(rows, dtype=torch.int64).view(-1, 5)
        self.kept = (list(sources), list(targets))
        self.table = sent(table, device)
        self.jobs = sent(_blocks_of(table[:, 4], self.BLOCK), device)
        self.scales = sent(torch.tensor(list(scales), dtype=torch.float32), device)

    def run(self) -> None:
        sources, targets = self.kept
        _copy_many[(len(self.jobs),)](
            self.table, self.scales, self.jobs, sources[0], targets[0], BLOCK=self.BLOCK, num_warps=4
        )


def _blocks_of(sizes: Tensor, block: int) -> Tensor:
    """The blocks that rows of these sizes (N,) are done in, (blocks, 2): which row, and where to begin."""
    counts = (sizes + block - 1) // block
    row = torch.repeat_interleave(torch.arange(len(sizes)), counts)
    first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return torch.stack([row, (torch.arange(len(row)) - first) * block], 1)
