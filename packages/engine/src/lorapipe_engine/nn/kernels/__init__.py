"""The operations of the fused blocks: Triton's kernels where it runs, torch's own operations elsewhere.

:data:`OPS` says what each of them is in both. Rows N of C channels (pictures in channels-last order are such rows:
N = B·H·W). Statistics and sums are float32, whatever the dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from lorapipe_engine.nn.kernels import blocks as plain_blocks
from lorapipe_engine.nn.kernels import plain
from lorapipe_engine.nn.kernels.blocks import TILE, Blocks
from lorapipe_engine.nn.kernels.gradients import FactorGradients
from lorapipe_engine.nn.kernels.plain import GEGLU, GELU, QUICK_GELU

__all__ = ["GEGLU", "GELU", "QUICK_GELU"]


def runs_triton(x: Tensor) -> bool:
    """Whether Triton has kernels for a tensor."""
    return x.is_cuda and _has_triton() and x.dtype != torch.float64


def runs_products(x: Tensor) -> bool:
    """Whether Triton has products for a tensor: the card's matrix units would drop digits of float32."""
    return runs_triton(x) and x.dtype != torch.float32


@dataclass(frozen=True)
class Op:
    """An operation: "module:name" of Triton's, a file of this folder; torch's; whether it is made of products. Both
    take the same arguments."""

    triton: str
    torch: Callable[..., Any]
    products: bool = False


OPS: Mapping[str, Op] = {
    "lift": Op("triton_dots:lift", plain.lift, products=True),
    "scale_columns": Op("triton_dots:scale_columns", plain.scale_columns),
    "sum_scaled": Op("triton_dots:sum_scaled", plain.sum_scaled),
    "lay": Op("triton_blocks:lay", plain_blocks.lay),
    "rotate": Op("triton_blocks:rotate", plain_blocks.rotate, products=True),
    "rotate_back": Op("triton_blocks:rotate_back", plain_blocks.rotate_back, products=True),
    "layer_norm": Op("triton_norms:layer_norm", plain.layer_norm),
    "layer_norm_each": Op("triton_norms:layer_norm_each", plain.layer_norm_each),
    "layer_norm_backward": Op("triton_norms:layer_norm_backward", plain.layer_norm_backward),
    "activate": Op("triton_kernels:activate", plain.activate),
    "activate_backward": Op("triton_kernels:activate_backward", plain.activate_backward),
    "activate_scaled_backward": Op("triton_kernels:activate_scaled_backward", plain.activate_scaled_backward),
    "group_norm": Op("triton_norms:group_norm", plain.group_norm),
    "group_norm_backward": Op("triton_norms:group_norm_backward", plain.group_norm_backward),
    "turned": Op("triton_kernels:turned", plain.turned),
    "add_bias": Op("triton_kernels:add_bias", plain.add_bias),
    "sum_rows": Op("triton_kernels:sum_rows", plain.sum_rows),
    "copies": Op("triton_kernels:CopyTable", plain.CopyTable),
}


def _choose(name: str, x: Tensor, *, fits: bool = True) -> Callable[..., Any]:
    """The operation for tensors like x. ``fits``: whether Triton's can take what else it is given."""
    op = OPS[name]
    runs = runs_products(x) if op.products else runs_triton(x)
    return _load(op.triton) if runs and fits else op.torch


@cache
def _load(place: str) -> Any:
    """Triton's side, which is imported when it is first used."""
    module, _, name = place.partition(":")
    return getattr(import_module(f"lorapipe_engine.nn.kernels.{module}"), name)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def are_compiled() -> bool:
    """Whether Triton has compiled kernels of ours here before, by the files that it keeps; True without it."""
    if not _has_triton():
        return True
    from triton import knobs

    return any(Path(knobs.cache.dir).glob("*/_group_values.json"))


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


def lift(
    both: Tensor,
    factor: Tensor,
    residual: Tensor | None = None,
    *,
    more: Tensor | None = None,
    ratio: Tensor | None = None,
    bias: Tensor | None = None,
    sums: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Of rows [y | h] (N, C + R): y + h · factor + bias + residual + more (N, C), and h (N, R). ``factor`` (R, C). The
    rows may be written to. ``more`` (N, C) or, where h gets more too, (N, C + R).

    With ``ratio`` (C,), float32: (y + h · factor) · ratio + bias + residual, without ``more``; the rows stay as they
    are. ``sums``: (other, into), the sums of (y + h · factor) · other (N, C) over the rows are added to ``into`` (C,).
    """
    fits = runs_products(both) and factor.shape[0] <= most_ranks(_room(both))
    chosen = _choose("lift", both, fits=fits)
    lifted: tuple[Tensor, Tensor] = chosen(both, factor, residual, more, ratio, bias, sums)
    return lifted


def scale_columns(x: Tensor, ratio: Tensor, other: Tensor, into: Tensor) -> Tensor:
    """x · ratio (N, C), of x (N, C) and ``ratio`` (C,), float32; the sums of x · other (N, C) over the rows are added
    to ``into`` (C,)."""
    scaled: Tensor = _choose("scale_columns", x)(x, ratio, other, into)
    return scaled


def sum_scaled(parts: Tensor, ratio: Tensor, other: Tensor, into: Tensor) -> Tensor:
    """The sum over K of parts · ratio (N, C), of ``parts`` (K, N, C) and ``ratio`` (K, C), float32; the sums of each
    part · other (N, C) over the rows are added to ``into`` (K, C)."""
    scaled: Tensor = _choose("sum_scaled", parts)(parts, ratio, other, into)
    return scaled


def rotate(
    rows: Tensor, bias: Tensor | None, change: Tensor | None, turns: Tensor, blocks: Blocks, *, whole: bool
) -> Tensor:
    """change + (rows - bias + change) T, (N, C), and with ``whole`` also + rows: blocks of channels times ``turns``
    (blocks, size, size), float32. ``change`` (N, C) is what turns before this one add to the rows, ``bias`` (C,)."""
    moved: Tensor = _choose("rotate", rows, fits=_holds(rows, blocks))(
        rows, bias, change, turns, blocks, whole
    )
    return moved


def rotate_back(
    rows: Tensor,
    bias: Tensor | None,
    change: Tensor | None,
    grad: Tensor,
    also: Tensor | None,
    turns: Tensor,
    blocks: Blocks,
    into: Tensor,
    *,
    whole: bool,
) -> Tensor:
    """The way back through :func:`rotate`: also + (grad + also) Tᵀ, (N, C), and with ``whole`` also + grad. The
    gradient of the turns, of rows - bias + change and grad + also, is added to ``into``."""
    chosen = _choose("rotate_back", rows, fits=_holds(rows, blocks))
    moved: Tensor = chosen(rows, bias, change, grad, also, turns, blocks, into, whole)
    return moved


def lay(rows: Tensor, *, by_channels: bool) -> Tensor:
    """Rows (N, C) of which each row is in one piece, or each channel: a copy, where they are not laid so already."""
    if (rows.mT if by_channels else rows).is_contiguous():
        return rows
    laid: Tensor = _choose("lay", rows)(rows, by_channels)
    return laid


def prefers_channels(rows: Tensor, blocks: Sequence[Blocks]) -> bool:
    """Whether turns are quicker on rows of which each channel is in one piece: else a kernel would read channels that
    lie apart one by one. What :func:`rotate` gives is laid as the rows are."""
    return any(block.inner > 1 and _holds(rows, block) for block in blocks)


def _holds(rows: Tensor, blocks: Blocks) -> bool:
    return runs_products(rows) and blocks.size <= most_channels(_room(rows))


def turn_width(like: Tensor) -> int:
    """Channels up to which blocks are best put together in one turn, on the device of ``like``, a frozen weight; of one
    on the meta device, on this machine's card."""
    on_card = like.is_cuda or (like.is_meta and torch.cuda.is_available())
    if not (on_card and _has_triton()) or like.dtype in (torch.float32, torch.float64):
        return TILE
    return most_channels(_room_of((like.device.index or 0) if like.is_cuda else torch.cuda.current_device()))


def most_channels(room: int) -> int:
    """Channels of a block that the kernels turn at once; larger blocks are products enough by themselves."""
    return 128 if room >= LARGE else 64


class FactorBatch(Protocol):
    """The gradients of several packs in one kernel."""

    def add(self, reads: Sequence[tuple[Tensor, Tensor, Sequence[Tensor], Tensor]]) -> None:
        """x, hidden, dys and dhidden of each pack, as for :meth:`FactorGradients.add`."""


def can_batch(into: FactorGradients, x: Tensor, count: int) -> bool:
    """Whether a :class:`FactorBatch` can take the gradients of a pack, with ``count`` dys."""
    return runs_products(x) and count <= 3 and max(len(down) for down in into.downs) <= MOST_EACH


def factor_batch(packs: Sequence[tuple[FactorGradients, bool]]) -> FactorBatch:
    """A batch for these packs: where their gradients go, and whether a pack's dys are several."""
    batch: FactorBatch = _load("triton_dots:FactorBatch")(packs)
    return batch


# ------------------------------------------------------------------------------------------ magnitudes


class ChangedWeights(Protocol):
    """Frozen weights of N layers that are alike, for a kernel that reads all of them."""

    def squares(self, up: Tensor, down: Tensor, stages: int) -> Tensor:
        """See :func:`squares_of_changed`."""


def can_square(weights: Sequence[Tensor], up: Tensor) -> bool:
    """Whether one kernel can read these weights, (out, in) or (out, in, 1, 1), with factors of which ``up`` is one."""
    like = weights[0]
    return (
        up.dtype == torch.float32
        and 0 < up.shape[2] <= MOST_EACH
        and runs_products(like)
        and _room(like) >= SMALL
        and all(
            weight.shape == like.shape and weight.dtype == like.dtype and weight.device == up.device
            for weight in weights
        )
        and all(weight.stride(1) == 1 for weight in weights)
        and like.shape[2:].numel() == 1
    )


def changed_weights(weights: Sequence[Tensor], *, by_output: bool) -> ChangedWeights:
    """The weights by their places, which are copied to the card: not while a graph is captured. They must stay where
    they are."""
    changed: ChangedWeights = _load("triton_magnitudes:ChangedWeights")(weights, by_output)
    return changed


def squares_of_changed(weights: ChangedWeights, up: Tensor, down: Tensor) -> Tensor:
    """‖W + up · down‖² for each output, (N, out), or for each input, (N, in): ``up`` (N, out, r), ``down`` (N, r,
    in), float32."""
    return weights.squares(up, down, stages_for(_room(up)))


# ------------------------------------------------------------------------------------------ attention on few keys


def stages_for(room: int) -> int:
    """How many rounds of rows the backward pass may have under way."""
    return 3 if room >= LARGE else 2


def few_keys(query: Tensor, count: int, heads: int) -> bool:
    """Whether :func:`attend_few` is there for rows of queries (N, heads·D) on ``count`` keys each."""
    here = runs_products(query) and _room(query) >= SMALL
    return here and bool(_load("triton_few_keys:fits")(count, query.shape[1] // heads))


def attend_few(query: Tensor, keys: Tensor, batch: int, heads: int) -> Tensor:
    """Attention of rows (B·N, heads·D) on rows [key | value] (B·M, 2·heads·D)."""
    attended: Tensor = _load("triton_few_keys:attend_few")(query, keys, batch, heads)
    return attended


def attend_few_backward(
    query: Tensor, keys: Tensor, grad: Tensor, batch: int, heads: int
) -> tuple[Tensor, Tensor]:
    """Gradients of query and keys."""
    stages = stages_for(_room(query))
    gradients: tuple[Tensor, Tensor] = _load("triton_few_keys:attend_few_backward")(
        query, keys, grad, batch, heads, stages
    )
    return gradients


# ------------------------------------------------------------------------------------------ norms and activations


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, out: Tensor) -> tuple[Tensor, Tensor]:
    """Norm of rows (N, C) into ``out``, whose rows may be longer; their mean and 1/deviation, (N,) float32."""
    moments: tuple[Tensor, Tensor] = _choose("layer_norm", x)(x, weight, bias, eps, out)
    return moments


def layer_norm_each(x: Tensor, weight: Tensor, bias: Tensor, eps: float, ratio: Tensor, out: Tensor) -> None:
    """The norm of rows (N, C) times each row of ``ratio`` (K, C), rounded once, into ``out`` (K, N, C), whose rows may
    be longer."""
    _choose("layer_norm_each", x)(x, weight, bias, eps, ratio, out)


def layer_norm_backward(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    grad: Tensor,
    also: Tensor | None,
    into: tuple[Tensor, Tensor | None] | None = None,
) -> Tensor:
    """Gradient of x plus ``also``. Those of weight and bias are added to ``into``, (C,) float32, where it is given."""
    gradient: Tensor = _choose("layer_norm_backward", x)(x, mean, rstd, weight, grad, also, into)
    return gradient


def activate(kind: int, inner: Tensor, out: Tensor, ratio: Tensor | None = None) -> None:
    """Activation of ``inner``, times ``ratio`` (F,) float32 where there is one, in ``out`` (N, F), whose rows may be
    longer."""
    _choose("activate", inner)(kind, inner, out, ratio)


def activate_backward(
    kind: int, inner: Tensor, grad: Tensor, *, apart: bool = False
) -> tuple[Tensor, Tensor]:
    """Gradient of ``inner``, and the forward's result once more; they may take the places of ``inner`` and ``grad``,
    which are the widest tensors of a block. ``apart``: both stay as they are, and only the gradient is made."""
    both: tuple[Tensor, Tensor] = _choose("activate_backward", inner)(kind, inner, grad, apart)
    return both


def activate_scaled_backward(
    kind: int, inner: Tensor, grad: Tensor, ratio: Tensor, into: Tensor
) -> tuple[Tensor, Tensor]:
    """:func:`activate_backward` of an activation that is multiplied with ``ratio`` (F,), float32, and then has the
    gradient ``grad`` (N, F): its sums with the activation over the rows are added to ``into`` (F,)."""
    both: tuple[Tensor, Tensor] = _choose("activate_scaled_backward", inner)(kind, inner, grad, ratio, into)
    return both


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, shift: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Norm of (x + shift), through SiLU where asked. ``x`` (B, S, C), ``shift`` (B, C) or None; result (B, S, C), mean
    and 1/deviation (B, groups) float32.
    """
    normed: tuple[Tensor, Tensor, Tensor] = _choose("group_norm", x)(
        x, groups, weight, bias, eps, shift, silu
    )
    return normed


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
    """Gradient of x (B, S, C) plus ``also``. ``into``: as for :func:`layer_norm_backward`."""
    gradient: Tensor = _choose("group_norm_backward", x)(
        x, mean, rstd, weight, bias, shift, silu, grad, also, into
    )
    return gradient


# ------------------------------------------------------------------------------------------ sums and copies


class Copies(Protocol):
    """Copies that are always the same ones."""

    def run(self) -> None:
        """Copy."""


def turned(weight: Tensor) -> Tensor:
    """A kernel (out, in, k, k) as its convolution's gradient needs it: (in, out, k, k), turned by 180 degrees, in
    channels-last order."""
    ordered = weight.is_contiguous(memory_format=torch.channels_last)
    copy: Tensor = _choose("turned", weight, fits=ordered)(weight)
    return copy


def add_bias(x: Tensor, bias: Tensor | None, also: Tensor | None, more: Tensor | None = None) -> Tensor:
    """x (N, C) + bias + also + more, in place of x."""
    if bias is None:
        for part in (also, more):
            x = x if part is None else x.add_(part)
        return x
    _choose("add_bias", x)(x, bias, also, more)
    return x


def sum_rows(x: Tensor, into: Tensor) -> None:
    """Add the sums of x (N, C) over the rows to ``into`` (C,), float32."""
    _choose("sum_rows", x)(x, into)


def many_copies(sources: Sequence[Tensor], targets: Sequence[Tensor], scales: Sequence[float]) -> Copies:
    """Copies of many matrices, each times a number, in one kernel: ``targets[i] = sources[i] · scales[i]`` at each
    ``run``.

    Sources are whole (rows, columns) float32; targets may have longer rows and another dtype.
    """
    of_one_type = len({target.dtype for target in targets}) == 1
    like = targets[0] if targets else torch.empty(0)
    copies: Copies = _choose("copies", like, fits=of_one_type)(sources, targets, scales)
    return copies
