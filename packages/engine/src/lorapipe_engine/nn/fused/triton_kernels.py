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


def _rows(x: Tensor) -> Tensor:
    """x itself where its rows, of any length, follow each other at one distance, as those of a slice of channels do
    (the gradient of a skip connection is one); else a copy."""
    even = x.dim() == 2 or x.stride(0) == x.shape[1] * x.stride(1)
    return x if x.stride(-1) == 1 and even else x.contiguous()


# ------------------------------------------------------------------------------------------ layer norm


@triton.jit
def _layer_norm(x, weight, bias, out, mean, rstd, stride_out, eps, C, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < C
    values = tl.load(x + row * C + column, mask=inside, other=0.0).to(tl.float32)
    middle = tl.sum(values, axis=0) / C
    centred = tl.where(inside, values - middle, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / C + eps)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * stride_out + column, centred * scale * w + b, mask=inside)
    tl.store(mean + row, middle)
    tl.store(rstd + row, scale)


@triton.jit
def _layer_norm_backward(
    x, weight, mean, rstd, grad, also, dx, stride_grad, stride_also, C, ALSO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < C
    values = tl.load(x + row * C + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(rstd + row)
    hat = tl.where(inside, (values - tl.load(mean + row)) * scale, 0.0)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    inner = tl.load(grad + row * stride_grad + column, mask=inside, other=0.0).to(tl.float32) * w
    first = tl.sum(inner, axis=0) / C
    second = tl.sum(inner * hat, axis=0) / C
    grad_x = (inner - first - hat * second) * scale
    if ALSO:
        grad_x += tl.load(also + row * stride_also + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + row * C + column, grad_x, mask=inside)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    rows, width = x.shape
    mean, rstd = x.new_empty(2, rows, dtype=torch.float32)
    block = triton.next_power_of_2(width)
    warps = 4 if block <= 2048 else 8
    _layer_norm[(rows,)](
        x, weight, bias, out, mean, rstd, out.stride(0), eps, C=width, BLOCK=block, num_warps=warps
    )
    return mean, rstd


def layer_norm_backward(
    x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, grad: Tensor, also: Tensor | None
) -> Tensor:
    x, grad = x.contiguous(), _rows(grad)
    rows, width = x.shape
    dx = torch.empty_like(x)
    added = dx if also is None else _rows(also)
    block = triton.next_power_of_2(width)
    _layer_norm_backward[(rows,)](
        x, weight, mean, rstd, grad, added, dx, grad.stride(0), added.stride(0),
        C=width, ALSO=also is not None, BLOCK=block, num_warps=4 if block <= 2048 else 8,
    )  # fmt: skip
    return dx


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
def _activate_backward(inner, grad, stride_grad, F, KIND: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < F
    of_grad = grad + row * stride_grad + column
    dy = tl.load(of_grad, mask=inside, other=0.0).to(tl.float32)
    if KIND == 0:
        of_value = inner + row * (2 * F) + column
        value = tl.load(of_value, mask=inside, other=0.0).to(tl.float32)
        gate = tl.load(of_value + F, mask=inside, other=0.0).to(tl.float32)
        share, slope = _share_of(gate, KIND)
        tl.store(of_value, dy * gate * share, mask=inside)
        tl.store(of_value + F, dy * value * slope, mask=inside)
        tl.store(of_grad, value * gate * share, mask=inside)
    else:
        of_gate = inner + row * F + column
        gate = tl.load(of_gate, mask=inside, other=0.0).to(tl.float32)
        share, slope = _share_of(gate, KIND)
        tl.store(of_gate, dy * slope, mask=inside)
        tl.store(of_grad, gate * share, mask=inside)


def activate(kind: int, inner: Tensor, out: Tensor, ratio: Tensor | None = None) -> None:
    inner = inner.contiguous()
    rows, width = out.shape
    _activate[(rows, triton.cdiv(width, 1024))](
        inner, out if ratio is None else ratio, out, out.stride(0), width,
        KIND=kind, RATIO=ratio is not None, BLOCK=1024, num_warps=4,
    )  # fmt: skip


def activate_backward(kind: int, inner: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    inner, grad = inner.contiguous(), _rows(grad)
    rows, width = grad.shape
    _activate_backward[(rows, triton.cdiv(width, 1024))](
        inner, grad, grad.stride(0), width, KIND=kind, BLOCK=1024, num_warps=4
    )
    return inner, grad


# ------------------------------------------------------------------------------------------ group norm
# Three passes: sums of tiles of ROWS x 64 channels, sums of groups, values. Tiles keep mean and squared deviation,
# joined by Chan's formula, so that a large mean costs no digits.

ROWS, WIDE = 128, 64


@triton.jit
def _group_sums(x, part, S, C, ROWS: tl.constexpr, WIDE: tl.constexpr):
    batch, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.program_id(2) * WIDE + tl.arange(0, WIDE)
    row = chunk * ROWS + tl.arange(0, ROWS)
    inside = (row[:, None] < S) & (column[None, :] < C)
    values = tl.load(x + (batch * S + row[:, None]) * C + column[None, :], mask=inside, other=0.0).to(
        tl.float32
    )
    count = tl.minimum(S - chunk * ROWS, ROWS)
    middle = tl.sum(values, axis=0) / count
    centred = tl.where(inside, values - middle[None, :], 0.0)
    square = tl.sum(centred * centred, axis=0)
    place = part + (batch * tl.num_programs(1) + chunk) * 2 * C + column
    tl.store(place, middle, mask=column < C)
    tl.store(place + C, square, mask=column < C)


@triton.jit
def _group_join(
    part, shift, mean, rstd, S, chunks, eps, stride_shift,
    C, G, SHIFT: tl.constexpr, ROWS: tl.constexpr, FEW: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    batch, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    width = C // G
    column = tl.arange(0, WIDE)
    inside = column < width
    channel = group * width + column
    extra = tl.zeros((WIDE,), tl.float32)
    if SHIFT:
        extra = tl.load(shift + batch * stride_shift + channel, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((FEW, WIDE), tl.float32)
    for start in range(0, chunks, FEW):
        chunk = start + tl.arange(0, FEW)
        both = (chunk[:, None] < chunks) & inside[None, :]
        count = tl.minimum(S - chunk * ROWS, ROWS).to(tl.float32)
        middle = tl.load(
            part + (batch * chunks + chunk[:, None]) * 2 * C + channel[None, :], mask=both, other=0.0
        )
        total += tl.where(both, (middle + extra[None, :]) * count[:, None], 0.0)
    count_all = S * width
    centre = tl.sum(tl.sum(total, axis=1), axis=0) / count_all
    total = tl.zeros((FEW, WIDE), tl.float32)
    for start in range(0, chunks, FEW):
        chunk = start + tl.arange(0, FEW)
        both = (chunk[:, None] < chunks) & inside[None, :]
        count = tl.minimum(S - chunk * ROWS, ROWS).to(tl.float32)
        place = part + (batch * chunks + chunk[:, None]) * 2 * C + channel[None, :]
        away = tl.load(place, mask=both, other=0.0) + extra[None, :] - centre
        total += tl.where(both, tl.load(place + C, mask=both, other=0.0) + away * away * count[:, None], 0.0)
    spread = tl.sum(tl.sum(total, axis=1), axis=0) / count_all
    tl.store(mean + batch * G + group, centre)
    tl.store(rstd + batch * G + group, 1.0 / tl.sqrt(spread + eps))


@triton.jit
def _group_hat(
    x, shift, weight, bias, mean, rstd, batch, row, column, S, stride_shift,
    C, G, SHIFT: tl.constexpr,
):  # fmt: skip
    """Of a tile: normed values, weight, bias, 1/deviation, and which of it is inside."""
    width = C // G
    here = column < C
    inside = (row[:, None] < S) & here[None, :]
    group = column // width
    w = tl.load(weight + column, mask=here, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=here, other=0.0).to(tl.float32)
    centre = tl.load(mean + batch * G + group, mask=here, other=0.0)
    scale = tl.load(rstd + batch * G + group, mask=here, other=0.0)
    if SHIFT:
        centre -= tl.load(shift + batch * stride_shift + column, mask=here, other=0.0).to(tl.float32)
    values = tl.load(x + (batch * S + row[:, None]) * C + column[None, :], mask=inside, other=0.0).to(
        tl.float32
    )
    return (values - centre[None, :]) * scale[None, :], w, b, scale, inside


@triton.jit
def _group_values(
    x, shift, weight, bias, mean, rstd, out, S, stride_shift,
    C, G, SHIFT: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * WIDE + tl.arange(0, WIDE)
    hat, w, b, _, inside = _group_hat(
        x, shift, weight, bias, mean, rstd, batch, row, column, S, stride_shift, C, G, SHIFT
    )
    z = hat * w[None, :] + b[None, :]
    if SILU:
        z = z * tl.sigmoid(z)
    tl.store(out + (batch * S + row[:, None]) * C + column[None, :], z, mask=inside)


@triton.jit
def _group_grad_sums(
    x, shift, weight, bias, mean, rstd, grad, part, S, stride_grad, stride_shift,
    C, G, SHIFT: tl.constexpr, SILU: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    batch, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = chunk * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * WIDE + tl.arange(0, WIDE)
    hat, w, b, _, inside = _group_hat(
        x, shift, weight, bias, mean, rstd, batch, row, column, S, stride_shift, C, G, SHIFT
    )
    place = (batch * S + row[:, None]) * stride_grad + column[None, :]
    dz = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    if SILU:
        z = hat * w[None, :] + b[None, :]
        share = tl.sigmoid(z)
        dz = dz * share * (1.0 + z * (1.0 - share))
    place = part + (batch * tl.num_programs(1) + chunk) * 2 * C + column
    tl.store(place, tl.sum(dz, axis=0) * w, mask=column < C)
    tl.store(place + C, tl.sum(dz * hat, axis=0) * w, mask=column < C)


@triton.jit
def _group_grad_join(part, sums, S, chunks, C, G, FEW: tl.constexpr, WIDE: tl.constexpr):
    batch, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    width = C // G
    column = tl.arange(0, WIDE)
    first = tl.zeros((FEW, WIDE), tl.float32)
    second = tl.zeros((FEW, WIDE), tl.float32)
    for start in range(0, chunks, FEW):
        chunk = start + tl.arange(0, FEW)
        both = (chunk[:, None] < chunks) & (column < width)[None, :]
        place = part + (batch * chunks + chunk[:, None]) * 2 * C + (group * width + column)[None, :]
        first += tl.load(place, mask=both, other=0.0)
        second += tl.load(place + C, mask=both, other=0.0)
    tl.store(sums + (batch * G + group) * 2, tl.sum(tl.sum(first, axis=1), axis=0) / (S * width))
    tl.store(sums + (batch * G + group) * 2 + 1, tl.sum(tl.sum(second, axis=1), axis=0) / (S * width))


@triton.jit
def _group_grad(
    x, shift, weight, bias, mean, rstd, grad, sums, also, dx, S, stride_grad, stride_also, stride_shift,
    C, G, SHIFT: tl.constexpr, SILU: tl.constexpr, ALSO: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(2) * WIDE + tl.arange(0, WIDE)
    hat, w, b, scale, inside = _group_hat(
        x, shift, weight, bias, mean, rstd, batch, row, column, S, stride_shift, C, G, SHIFT
    )
    line = batch * S + row[:, None]
    dz = tl.load(grad + line * stride_grad + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if SILU:
        z = hat * w[None, :] + b[None, :]
        share = tl.sigmoid(z)
        dz = dz * share * (1.0 + z * (1.0 - share))
    group = column // (C // G)
    first = tl.load(sums + (batch * G + group) * 2, mask=column < C, other=0.0)
    second = tl.load(sums + (batch * G + group) * 2 + 1, mask=column < C, other=0.0)
    grad_x = (dz * w[None, :] - first[None, :] - hat * second[None, :]) * scale[None, :]
    if ALSO:
        grad_x += tl.load(also + line * stride_also + column[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(dx + line * C + column[None, :], grad_x, mask=inside)


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, shift: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    x = x.contiguous()
    batch, size, width = x.shape
    chunks = triton.cdiv(size, ROWS)
    grid = (batch, chunks, triton.cdiv(width, WIDE))
    part = x.new_empty(batch, chunks, 2, width, dtype=torch.float32)
    mean, rstd = x.new_empty(2, batch, groups, dtype=torch.float32)
    out = torch.empty_like(x)
    moved = x if shift is None else _rows(shift)
    has = shift is not None
    _group_sums[grid](x, part, size, C=width, ROWS=ROWS, WIDE=WIDE)
    _group_join[(batch, groups)](
        part, moved, mean, rstd, size, chunks, eps, moved.stride(0),
        C=width, G=groups, SHIFT=has, ROWS=ROWS, FEW=32, WIDE=max(64, triton.next_power_of_2(width // groups)),
    )  # fmt: skip
    _group_values[grid](
        x, moved, weight, bias, mean, rstd, out, size, moved.stride(0),
        C=width, G=groups, SHIFT=has, SILU=silu, ROWS=ROWS, WIDE=WIDE,
    )  # fmt: skip
    return out, mean, rstd


def group_norm_backward(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor | None,
    silu: bool,
    grad: Tensor,
    also: Tensor | None,
) -> Tensor:
    x, grad = x.contiguous(), _rows(grad)
    batch, size, width = x.shape
    groups = mean.shape[1]
    chunks = triton.cdiv(size, ROWS)
    grid = (batch, chunks, triton.cdiv(width, WIDE))
    part = x.new_empty(batch, chunks, 2, width, dtype=torch.float32)
    sums = x.new_empty(batch, groups, 2, dtype=torch.float32)
    dx = torch.empty_like(x)
    added = dx if also is None else _rows(also)
    moved = x if shift is None else _rows(shift)
    same = {"C": width, "G": groups, "SHIFT": shift is not None, "SILU": silu, "ROWS": ROWS, "WIDE": WIDE}
    _group_grad_sums[grid](
        x, moved, weight, bias, mean, rstd, grad, part, size, grad.stride(1), moved.stride(0), **same
    )
    _group_grad_join[(batch, groups)](
        part,
        sums,
        size,
        chunks,
        C=width,
        G=groups,
        FEW=32,
        WIDE=max(64, triton.next_power_of_2(width // groups)),
    )
    _group_grad[grid](
        x, moved, weight, bias, mean, rstd, grad, sums, added, dx, size, grad.stride(1), added.stride(1),
        moved.stride(0), ALSO=also is not None, **same,
    )  # fmt: skip
    return dx


# ------------------------------------------------------------------------------------------ sums and copies


@triton.jit
def _add_bias(x, bias, also, N, stride_also, C, ALSO: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    inside = (row[:, None] < N) & (column[None, :] < C)
    place = row[:, None] * C + column[None, :]
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    values += tl.load(bias + column, mask=column < C, other=0.0).to(tl.float32)[None, :]
    if ALSO:
        place_also = row[:, None] * stride_also + column[None, :]
        values += tl.load(also + place_also, mask=inside, other=0.0).to(tl.float32)
    tl.store(x + place, values, mask=inside)


def add_bias(x: Tensor, bias: Tensor, also: Tensor | None) -> None:
    rows, width = x.shape
    added = x if also is None else _rows(also)
    _add_bias[(triton.cdiv(rows, 64), triton.cdiv(width, WIDE))](
        x, bias, added, rows, added.stride(0), width, ALSO=also is not None, ROWS=64, WIDE=WIDE
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
        self.table = table.to(device)
        self.jobs = _blocks_of(table[:, 4], self.BLOCK).to(device)
        self.scales = torch.tensor(list(scales), dtype=torch.float32, device=device)

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
