"""Triton kernels of norms, behind :mod:`.kernels`; their arguments are explained there.

Each works on rows of channels; sums are float32. Numbers of a layout are compile-time constants where they are few for
a model, so that divisions become shifts and multiplications.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,misc,no-untyped-call"
# ruff: noqa: N803
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lorapipe_engine.nn.kernels.triton_kernels import _rows

ROWS, WIDE = 128, 64


# ------------------------------------------------------------------------------------------ weights and biases


@triton.jit
def _add_sums(part, weight, bias, chunks, C, BIAS: tl.constexpr, FEW: tl.constexpr, WIDE: tl.constexpr):
    """The sums of all tiles of rows, added to the gradients of bias and weight."""
    column = tl.program_id(0) * WIDE + tl.arange(0, WIDE)
    here = column < C
    first = tl.zeros((FEW, WIDE), tl.float32)
    second = tl.zeros((FEW, WIDE), tl.float32)
    for start in range(0, chunks, FEW):
        chunk = start + tl.arange(0, FEW)
        inside = (chunk[:, None] < chunks) & here[None, :]
        place = part + chunk[:, None] * 2 * C + column[None, :]
        first += tl.load(place, mask=inside, other=0.0)
        second += tl.load(place + C, mask=inside, other=0.0)
    total = tl.load(weight + column, mask=here, other=0.0) + tl.sum(second, axis=0)
    tl.store(weight + column, total, mask=here)
    if BIAS:
        total = tl.load(bias + column, mask=here, other=0.0) + tl.sum(first, axis=0)
        tl.store(bias + column, total, mask=here)


def _sum_up(part: Tensor, into: tuple[Tensor, Tensor | None]) -> None:
    """Sums of tiles (chunks, 2, C), of bias and weight, into their gradients."""
    chunks, _, width = part.shape
    weight, bias = into
    _add_sums[(triton.cdiv(width, 32),)](
        part, weight, weight if bias is None else bias, chunks, width, BIAS=bias is not None, FEW=32, WIDE=32
    )


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
def _layer_norm_each(
    x, weight, bias, ratio, out, stride_out, stride_each, eps, C, COUNT: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < C
    values = tl.load(x + row * C + column, mask=inside, other=0.0).to(tl.float32)
    middle = tl.sum(values, axis=0) / C
    centred = tl.where(inside, values - middle, 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / C + eps)
    w = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    normed = centred * scale * w + b
    place = out + row * stride_out + column
    for each in tl.static_range(COUNT):
        own = tl.load(ratio + each * C + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(place, normed * own, mask=inside)
        place += stride_each


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


def layer_norm_each(x: Tensor, weight: Tensor, bias: Tensor, eps: float, ratio: Tensor, out: Tensor) -> None:
    x, ratio = x.contiguous(), ratio.contiguous()
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    _layer_norm_each[(rows,)](
        x, weight, bias, ratio, out, out.stride(1), out.stride(0), eps,
        C=width, COUNT=len(ratio), BLOCK=block, num_warps=4 if block <= 2048 else 8,
    )  # fmt: skip


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


@triton.jit
def _layer_norm_sums(x, mean, rstd, grad, part, N, stride_grad, C, ROWS: tl.constexpr, WIDE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * WIDE + tl.arange(0, WIDE)
    here = column < C
    inside = (row[:, None] < N) & here[None, :]
    values = tl.load(x + row[:, None] * C + column[None, :], mask=inside, other=0.0).to(tl.float32)
    dz = tl.load(grad + row[:, None] * stride_grad + column[None, :], mask=inside, other=0.0).to(tl.float32)
    middle = tl.load(mean + row, mask=row < N, other=0.0)
    scale = tl.load(rstd + row, mask=row < N, other=0.0)
    hat = (values - middle[:, None]) * scale[:, None]
    place = part + tl.program_id(0).to(tl.int64) * 2 * C + column
    tl.store(place, tl.sum(dz, axis=0), mask=here)
    tl.store(place + C, tl.sum(dz * hat, axis=0), mask=here)


def layer_norm_backward(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    grad: Tensor,
    also: Tensor | None,
    into: tuple[Tensor, Tensor | None] | None = None,
) -> Tensor:
    x, grad = x.contiguous(), _rows(grad)
    rows, width = x.shape
    if into is not None:
        chunks = triton.cdiv(rows, ROWS)
        part = x.new_empty(chunks, 2, width, dtype=torch.float32)
        _layer_norm_sums[(chunks, triton.cdiv(width, WIDE))](
            x, mean, rstd, grad, part, rows, grad.stride(0), C=width, ROWS=ROWS, WIDE=WIDE
        )
        _sum_up(part, into)
    dx = torch.empty_like(x)
    added = dx if also is None else _rows(also)
    block = triton.next_power_of_2(width)
    _layer_norm_backward[(rows,)](
        x, weight, mean, rstd, grad, added, dx, grad.stride(0), added.stride(0),
        C=width, ALSO=also is not None, BLOCK=block, num_warps=4 if block <= 2048 else 8,
    )  # fmt: skip
    return dx


# ------------------------------------------------------------------------------------------ group norm
# Three passes: sums of tiles of ROWS x 64 channels, sums of groups, values. Tiles keep mean and squared deviation,
# joined by Chan's formula, so that a large mean costs no digits.


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
    tl.store(place, tl.sum(dz, axis=0), mask=column < C)
    tl.store(place + C, tl.sum(dz * hat, axis=0), mask=column < C)


@triton.jit
def _group_grad_join(part, weight, sums, S, chunks, C, G, FEW: tl.constexpr, WIDE: tl.constexpr):
    batch, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    width = C // G
    column = tl.arange(0, WIDE)
    w = tl.load(weight + group * width + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    first = tl.zeros((FEW, WIDE), tl.float32)
    second = tl.zeros((FEW, WIDE), tl.float32)
    for start in range(0, chunks, FEW):
        chunk = start + tl.arange(0, FEW)
        both = (chunk[:, None] < chunks) & (column < width)[None, :]
        place = part + (batch * chunks + chunk[:, None]) * 2 * C + (group * width + column)[None, :]
        first += tl.load(place, mask=both, other=0.0)
        second += tl.load(place + C, mask=both, other=0.0)
    tl.store(sums + (batch * G + group) * 2, tl.sum(tl.sum(first * w, axis=1), axis=0) / (S * width))
    tl.store(sums + (batch * G + group) * 2 + 1, tl.sum(tl.sum(second * w, axis=1), axis=0) / (S * width))


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
    into: tuple[Tensor, Tensor | None] | None = None,
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
    if into is not None:
        _sum_up(part.flatten(0, 1), into)
    _group_grad_join[(batch, groups)](
        part,
        weight,
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
