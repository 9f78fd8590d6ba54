"""The gradients of the factors, of several packs in one kernel.

Each is a product of two tall matrices with a small result, which alone fills a part of a card and is over before it
has started. Nobody needs them before the update, so they wait until there is enough of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from lorapipe_engine.nn.fused import kernels

if TYPE_CHECKING:
    from lorapipe_engine.nn.fused.packed import Packed

MOST = 8  # packs that wait: those of a transformer block
ROOM = 128 * 2**20  # bytes of what they read, which stays in memory until then


@dataclass(frozen=True)
class _Waiting:
    pack: Packed
    x: Tensor
    hidden: Tensor
    dys: Sequence[Tensor]
    dhidden: Tensor

    @property
    def size(self) -> int:
        return sum(part.numel() * part.element_size() for part in (self.x, *self.dys))


class Later:
    """Gathers the work of packs. What is told to :meth:`add` is in the gradients after :meth:`finish`."""

    def __init__(self) -> None:
        self._waiting: list[_Waiting] = []
        self._batches: dict[tuple[tuple[int, bool], ...], kernels.FactorBatch] = {}

    def add(self, pack: Packed, x: Tensor, hidden: Tensor, dys: Sequence[Tensor], dhidden: Tensor) -> None:
        """See :meth:`Packed.add_gradients`."""
        self._waiting.append(_Waiting(pack, x, hidden, dys, dhidden))
        if len(self._waiting) >= MOST or sum(work.size for work in self._waiting) >= ROOM:
            self.finish()

    def forget(self) -> None:
        """Let go of what a pass has left that was broken off."""
        self._waiting.clear()

    def finish(self) -> None:
        """Start all that waits."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        key = tuple((id(work.pack), len(work.dys) > 1) for work in waiting)
        batch = self._batches.get(key)
        if batch is None:
            rows = [(work.pack.gradients(), len(work.dys) > 1) for work in waiting]
            batch = self._batches[key] = kernels.FactorBatch(rows)
        batch.add([(work.x, work.hidden, work.dys, work.dhidden) for work in waiting])
