"""Deferred gradients: those of the factors of several packs, computed in one kernel.

Each is a product of two tall matrices with a small result, which alone fills a small part of a card for a moment.
The update is the first to read them, so they are deferred until there are enough of them for a full card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lorapipe_engine.nn import kernels
from lorapipe_engine.nn.kernels.gradients import FactorGradients

MOST = 8  # packs that are deferred at once: those of a transformer block
ROOM = 128 * 2**20  # bytes of what they read, which stays in memory until then


@dataclass(frozen=True)
class _Deferred:
    into: FactorGradients
    x: Tensor
    hidden: Tensor
    dys: Sequence[Tensor]
    dhidden: Tensor

    @property
    def size(self) -> int:
        return sum(part.numel() * part.element_size() for part in (self.x, *self.dys))


class DeferredGradients:
    """Gathers the work of packs. What is given to :meth:`add` is in the gradients after :meth:`finish`."""

    def __init__(self) -> None:
        self._deferred: list[_Deferred] = []
        self._batches: dict[tuple[tuple[int, bool], ...], kernels.FactorBatch] = {}

    def add(
        self, into: FactorGradients, x: Tensor, hidden: Tensor, dys: Sequence[Tensor], dhidden: Tensor
    ) -> None:
        """See :meth:`FactorGradients.add`. None of the tensors may be written to afterwards."""
        self._deferred.append(_Deferred(into, x, hidden, dys, dhidden))
        if len(self._deferred) >= MOST or sum(work.size for work in self._deferred) >= ROOM:
            self.finish()

    def forget(self) -> None:
        """Drop what is left of a backward pass that was broken off."""
        self._deferred.clear()

    def finish(self) -> None:
        """Start all that is deferred."""
        works, self._deferred = self._deferred, []
        if not works:
            return
        key = tuple((id(work.into), len(work.dys) > 1) for work in works)
        batch = self._batches.get(key)
        if batch is None:
            rows = [(work.into, len(work.dys) > 1) for work in works]
            batch = self._batches[key] = kernels.factor_batch(rows)
        batch.add([(work.x, work.hidden, work.dys, work.dhidden) for work in works])
