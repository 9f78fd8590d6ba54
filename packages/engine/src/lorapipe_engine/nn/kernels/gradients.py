"""The gradients of the factors of packed layers, and where they go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class FactorGradients:
    """Where the gradients of a pack's layers go: ``downs`` (rank, in) and ``ups`` (out, rank), float32 buffers; those
    of the ups times ``scales``."""

    downs: Sequence[Tensor]
    ups: Sequence[Tensor]
    scales: Sequence[float]

    def add(self, x: Tensor, hidden: Tensor, dys: Sequence[Tensor], dhidden: Tensor) -> None:
        """``x`` (N, in), ``hidden`` (N, R), ``dhidden`` (N, R); ranks of the layers one after the other. ``dys``: one
        (N, sum of out), or one (N, out) for each layer."""
        parts = dys if len(dys) > 1 else torch.split(dys[0], [len(up) for up in self.ups], dim=1)
        if self._stacked is not None:
            add_product(self._stacked, dhidden[:, : len(self._stacked)].mT, x)
        column = 0
        for down, up, scale, dy in zip(self.downs, self.ups, self.scales, parts, strict=True):
            columns = slice(column, column + len(down))
            if self._stacked is None:
                add_product(down, dhidden[:, columns].mT, x)
            add_product(up, dy.mT, hidden[:, columns], scale)
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


def add_product(into: Tensor, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
    """``into += scale · a b``, summed in the dtype of ``into`` (float32) whatever a and b are."""
    if into.dtype == a.dtype:
        into.addmm_(a, b, alpha=scale)
    elif into.is_cuda:
        torch.addmm(into, a, b, out_dtype=into.dtype, alpha=scale, out=into)
    else:
        into.add_((a @ b).to(into.dtype), alpha=scale)
