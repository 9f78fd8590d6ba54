"""Rows turned by blocks of their channels, in torch's own operations: what :mod:`.kernels` says of it.

A turn is given as R - I, and what it adds to the rows is kept apart from them until the end: half precision would round
a small turn away otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Channels of a tile that a card's matrix units work on: small blocks are put together up to it.
TILE = 64


@dataclass(frozen=True)
class Blocks:
    """Which channels make up a block: channel ((o · high + h) · inner + i) · low + l is number (h · low + l) of block
    (o · inner + i). Channels side by side have ``high`` = ``inner`` = 1."""

    outer: int
    low: int
    high: int = 1
    inner: int = 1

    @property
    def size(self) -> int:
        """Channels of a block."""
        return self.high * self.low

    @property
    def count(self) -> int:
        """Blocks of a row."""
        return self.outer * self.inner

    def apart(self, rows: Tensor) -> Tensor:
        """Rows (N, C) as (count, N, size)."""
        parts = rows.view(len(rows), self.outer, self.high, self.inner, self.low)
        return parts.permute(1, 3, 0, 2, 4).reshape(self.count, len(rows), self.size)

    def joined(self, parts: Tensor) -> Tensor:
        """The way back."""
        split = parts.view(self.outer, self.inner, -1, self.high, self.low)
        return split.permute(2, 0, 3, 1, 4).reshape(parts.shape[1], -1)


def lay(rows: Tensor, by_channels: bool) -> Tensor:
    return rows.mT.contiguous().mT if by_channels else rows.contiguous()


def is_by_channels(rows: Tensor) -> bool:
    """Whether rows (N, C) are laid so that each channel is in one piece."""
    return rows.stride(0) == 1 and rows.stride(1) >= len(rows) > 1


def rotate(
    rows: Tensor, bias: Tensor | None, change: Tensor | None, turns: Tensor, blocks: Blocks, whole: bool
) -> Tensor:
    given = _given(rows, bias, change)
    moved = blocks.joined(torch.bmm(blocks.apart(given), turns.to(given.dtype)))
    return _summed(moved, change, rows if whole else None)


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
    given, reached = blocks.apart(_given(rows, bias, change)), blocks.apart(_given(grad, None, also))
    if given.is_cuda and given.dtype != into.dtype:
        into.add_(torch.bmm(given.mT, reached, out_dtype=into.dtype))
    else:
        into.baddbmm_(given.mT.to(into.dtype), reached.to(into.dtype))
    moved = blocks.joined(torch.bmm(reached, turns.to(reached.dtype).mT))
    return _summed(moved, also, grad if whole else None)


def _given(rows: Tensor, bias: Tensor | None, change: Tensor | None) -> Tensor:
    if bias is not None:
        rows = rows - bias.to(rows.dtype)
    return rows if change is None else rows + change


def _summed(moved: Tensor, *parts: Tensor | None) -> Tensor:
    for part in parts:
        moved = moved if part is None else moved + part
    return moved
