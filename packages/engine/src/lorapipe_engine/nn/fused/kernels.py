"""The kernels of the fused blocks: Triton's where it runs, torch's own operations elsewhere.

Rows N of C channels (pictures in channels-last order are such rows: N = B·H·W). Statistics and sums are float32,
whatever the dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F


@cache
def _triton() -> ModuleType:
    from lorapipe_engine.nn.fused import triton_kernels

    return triton_kernels


@cache
def _dots() -> ModuleType:
    from lorapipe_engine.nn.fused import triton_dots

    return triton_dots


@cache
def _few_keys() -> ModuleType:
    from lorapipe_engine.nn.fused import triton_few_keys

    return triton_few_keys


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def are_compiled() -> bool:
    """Whether Triton has compiled kernels of ours here before, by the files that it keeps; True without it."""
    if not _has_triton():
        return True
    from triton import knobs

    return any(Path(knobs.cache.dir).glob("*/_group_values.json"))


def _quick(x: Tensor) -> bool:
    return x.is_cuda and _has_triton() and x.dtype != torch.float64


def _quick_products(x: Tensor) -> bool:
    return _quick(x) and x.dtype != torch.float32  # of which the card's matrix units would drop digits


# ------------------------------------------------------------------------------------------ the network's products

# Bytes of a multiprocessor's own memory that tell cards apart: an RTX 30 to 50 has 99 KB, a Hopper card 227.
SMALL, LARGE = 90_000, 200_000
MOST_EACH = 128  # ranks of a layer whose gradients a kernel of ours adds up


@cache
def _room_of(device: int) -> int:
    from triton.runtime import driver

    return int(driver.active.utils.get_device_properties(device)["max_shared_mem"])


def _room(x: Tensor) -> int:
    """Bytes of its own memory that a kernel may take. Those of a card before the RTX 30 have 64 KB."""
    return _room_of(x.device.index or 0) if x.is_cuda else LARGE


def most_ranks(room: int) -> int:
    """Ranks that the kernels hold at once."""
    return 256 if room >= LARGE else 128 if room >= SMALL else 64


def lift(both: Tensor, factor: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Of rows [y | h] (N, C + R): y + h · factor + residual (N, C), and h (N, R). ``factor`` (R, C). The rows may be
    written to."""
    size, width = factor.shape
    if _quick_products(both) and size <= most_ranks(_room(both)):
        found: tuple[Tensor, Tensor] = _dots().lift(both, factor, residual)
        return found
    hidden = both[:, width:].clone()
    out = both[:, :width].addmm_(hidden, factor)
    return (out.contiguous() if residual is None else out + residual), hidden


@dataclass(frozen=True)
class FactorGradients:
    """Where the gradients of a pack's layers go: ``downs`` (rank, in) and ``ups`` (out, rank), float32 buffers; those
    of the ups times ``scales``."""

    downs: Sequence[Tensor]
    ups: Sequence[Tensor]
    scales: Sequence[float]

    def can_wait(self, x: Tensor, count: int) -> bool:
        """Whether a :class:`FactorBatch` can take them, with ``count`` dys."""
        return _quick_products(x) and count <= 3 and max(len(down) for down in self.downs) <= MOST_EACH

    def add(self, x: Tensor, hidden: Tensor, dys: Sequence[Tensor], dhidden: Tensor) -> None:
        """``x`` (N, in), ``hidden`` (N, R), ``dhidden`` (N, R); ranks of the layers one after the other. ``dys``: one
        (N, sum of out), or one (N, out) for each layer."""
        parts = dys if len(dys) > 1 else torch.split(dys[0], [len(up) for up in self.ups], dim=1)
        if self._stacked is not None:
            _add_product(self._stacked, dhidden[:, : len(self._stacked)].mT, x)
        column = 0
        for down, up, scale, dy in zip(self.downs, self.ups, self.scales, parts, strict=True):
            columns = slice(column, column + len(down))
            if self._stacked is None:
                _add_product(down, dhidden[:, columns].mT, x)
            _add_product(up, dy.mT, hidden[:, columns], scale)
            column = columns.stop

    @cached_property
    def _stacked(self) -> Tensor | None:
        """The downs as one (sum of ranks, in), where they lie side by side in the flat buffer."""
        first = self.downs[0]
        place, storage = first.storage_offset(), first.untyped_storage().data_ptr()
        for down in self.downs:
            if down.storage_offset() != place or down.untyped_storage().data_ptr() != storage:
                return None
            place += down.numel()
        width = first.shape[1]
        return first.as_strided((sum(len(down) for down in self.downs), width), (width, 1))


class FactorBatch:
    """The gradients of several packs in one kernel; ``packs``: where they go, and whether a pack's dys are several."""

    def __init__(self, packs: Sequence[tuple[FactorGradients, bool]]) -> None:
        self._batch = _dots().FactorBatch(packs)

    def add(self, reads: Sequence[tuple[Tensor, Tensor, Sequence[Tensor], Tensor]]) -> None:
        """x, hidden, dys and dhidden of each pack, as for :meth:`FactorGradients.add`."""
        self._batch.add(reads)


def _add_product(into: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """``into += scale · a b``, summed in the dtype of ``into`` (float32) whatever a and b are."""
    if into.dtype == a.dtype:
        into.addmm_(a, b, alpha=scale)
    elif into.is_cuda:
        torch.addmm(into, a, b, out_dtype=into.dtype, alpha=scale, out=into)
    else:
        into.add_((a @ b).to(into.dtype), alpha=scale)


# ------------------------------------------------------------------------------------------ attention on few keys


def stages_for(room: int) -> int:
    """How many rounds of rows the backward pass may have under way."""
    return 3 if room >= LARGE else 2


def few_keys(query: Tensor, count: int, heads: int) -> bool:
    """Whether :func:`attend_few` is there for rows of queries (N, heads·D) on ``count`` keys each."""
    here = _quick_products(query) and _room(query) >= SMALL
    return here and bool(_few_keys().fits(count, query.shape[1] // heads))


def attend_few(query: Tensor, keys: Tensor, batch: int, heads: int) -> Tensor:
    """Attention of rows (B·N, heads·D) on rows [key | value] (B·M, 2·heads·D)."""
    found: Tensor = _few_keys().attend_few(query, keys, batch, heads)
    return found


def attend_few_backward(
    query: Tensor, keys: Tensor, grad: Tensor, batch: int, heads: int
) -> tuple[Tensor, Tensor]:
    """Gradients of query and keys."""
    stages = stages_for(_room(query))
    found: tuple[Tensor, Tensor] = _few_keys().attend_few_backward(query, keys, grad, batch, heads, stages)
    return found


# ------------------------------------------------------------------------------------------ layer norm


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor) -> tuple[Tensor, Tensor]:
    """Norm of rows (N, C) into ``out``, whose rows may be longer; their mean and 1/deviation, (N,) float32."""
    if _quick(x):
        found: tuple[Tensor, Tensor] = _triton().layer_norm(x, weight, bias, eps, out)
        return found
    wide = _wide(x)
    mean = wide.mean(dim=1)
    rstd = (wide.var(dim=1, unbiased=False) + eps).rsqrt()
    out.copy_((wide - mean[:, None]) * rstd[:, None] * weight + bias)
    return mean, rstd


def layer_norm_backward(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    grad: Tensor,
    also: Tensor | None,
) -> Tensor:
    """Gradient of x plus ``also``."""
    if _quick(x):
        found: Tensor = _triton().layer_norm_backward(x, mean, rstd, weight, grad, also)
        return found
    hat = (_wide(x) - mean[:, None]) * rstd[:, None]
    inner = _wide(grad) * weight
    dx = inner - inner.mean(dim=1, keepdim=True) - hat * (inner * hat).mean(dim=1, keepdim=True)
    dx = dx * rstd[:, None]
    return (dx if also is None else dx + also).to(x.dtype)


# ------------------------------------------------------------------------------------------ activations

# Of a feed-forward layer: value · gelu(gate), gelu, and CLIP's x · sigmoid(1.702 x). The first takes (N, 2F) rows
# [value | gate], the others (N, F).
GEGLU, GELU, QUICK_GELU = 0, 1, 2


def activate(kind: int, inner: Tensor, out: Tensor) -> None:
    """Activation of ``inner`` in ``out`` (N, F), whose rows may be longer."""
    if _quick(inner):
        _triton().activate(kind, inner, out)
        return
    value, gate = _value_and_gate(kind, inner)
    out.copy_(value * gate * _share(kind, gate)[0])


def activate_backward(kind: int, inner: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of ``inner``, and the forward's result once more; they may take the places of ``inner`` and ``grad``,
    which are the widest tensors of a block."""
    if _quick(inner):
        found: tuple[Tensor, Tensor] = _triton().activate_backward(kind, inner, grad)
        return found
    value, gate = _value_and_gate(kind, inner)
    share, slope = _share(kind, gate)
    wide = _wide(grad)
    dgate = wide * value * slope
    dinner = torch.cat([wide * gate * share, dgate], dim=1) if kind == GEGLU else dgate
    return dinner.to(inner.dtype), (value * gate * share).to(grad.dtype)


def _value_and_gate(kind: int, inner: Tensor) -> tuple[Tensor, Tensor]:
    wide = _wide(inner)
    if kind != GEGLU:
        return wide.new_ones(1), wide
    value, gate = wide.chunk(2, dim=1)
    return value, gate


def _share(kind: int, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Of the gate: by what it is multiplied, and the slope of the product."""
    if kind == QUICK_GELU:
        share = torch.sigmoid(1.702 * gate)
        return share, share + 1.702 * gate * share * (1 - share)
    share = 0.5 * (1 + torch.erf(gate * 0.5**0.5))
    return share, share + gate * torch.exp(-0.5 * gate.square()) * 0.3989422804014327


# ------------------------------------------------------------------------------------------ group norm


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, shift: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm of (x + shift), through SiLU where asked. ``x`` (B, S, C), ``shift`` (B, C) or None; result (B, S, C), mean
    and 1/deviation (B, groups) float32.
    """
    if _quick(x):
        found: tuple[Tensor, Tensor, Tensor] = _triton().group_norm(x, groups, weight, bias, eps, shift, silu)
        return found
    parts = _in_groups(x, shift, groups)
    mean = parts.mean(dim=(1, 3))
    rstd = (parts.var(dim=(1, 3), unbiased=False) + eps).rsqrt()
    z = _normed(parts, mean, rstd) * weight + bias
    return (F.silu(z) if silu else z).to(x.dtype), mean, rstd


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
    """Gradient of x (B, S, C) plus ``also``."""
    if _quick(x):
        found: Tensor = _triton().group_norm_backward(x, mean, rstd, weight, bias, shift, silu, grad, also)
        return found
    parts = _in_groups(x, shift, mean.shape[1])
    hat = _normed(parts, mean, rstd)
    dz = _wide(grad)
    if silu:
        z = hat * weight + bias
        sigmoid = torch.sigmoid(z)
        dz = dz * sigmoid * (1 + z * (1 - sigmoid))
    inner = (dz * weight).view(parts.shape)
    hat = hat.view(parts.shape)
    dx = inner - inner.mean(dim=(1, 3), keepdim=True) - hat * (inner * hat).mean(dim=(1, 3), keepdim=True)
    dx = (dx * rstd[:, None, :, None]).view(x.shape)
    return (dx if also is None else dx + also).to(x.dtype)


def _in_groups(x: Tensor, shift: Tensor | None, groups: int) -> Tensor:
    wide = _wide(x)
    if shift is not None:
        wide = wide + shift[:, None]
    return wide.reshape(*x.shape[:2], groups, -1)  # (B, S, groups, C / groups)


def _normed(parts: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    return ((parts - mean[:, None, :, None]) * rstd[:, None, :, None]).flatten(2)


# ------------------------------------------------------------------------------------------ sums and copies


def turned(weight: Tensor) -> Tensor:
    """A kernel (out, in, k, k) as its convolution's gradient needs it: (in, out, k, k), turned by 180 degrees, in
    channels-last order."""
    if _quick(weight) and weight.is_contiguous(memory_format=torch.channels_last):
        found: Tensor = _triton().turned(weight)
        return found
    return weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=torch.channels_last)


def add_bias(x: Tensor, bias: Tensor | None, also: Tensor | None) -> Tensor:
    """x (N, C) + bias + also, in place of x."""
    if bias is None:
        return x if also is None else x.add_(also)
    if _quick(x):
        _triton().add_bias(x, bias, also)
        return x
    x.add_(bias)
    return x if also is None else x.add_(also)


class ManyCopies:
    """Copies many matrices, each times a number, in one kernel: ``targets[i] = sources[i] · scales[i]``.

    Sources are whole (rows, columns) float32; targets may have longer rows and another dtype.
    """

    def __init__(self, sources: Sequence[Tensor], targets: Sequence[Tensor], scales: Sequence[float]) -> None:
        self._rows = list(zip(sources, targets, scales, strict=True))
        self._table = None
        if sources and _quick(targets[0]) and len({target.dtype for target in targets}) == 1:
            self._table = _triton().CopyTable(sources, targets, scales)

    def run(self) -> None:
        """Copy."""
        if self._table is not None:
            self._table.run()
            return
        for source, target, scale in self._rows:
            torch.mul(source, scale, out=target) if source.dtype == target.dtype else target.copy_(
                source * scale
            )


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
