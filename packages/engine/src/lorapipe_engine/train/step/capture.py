"""The step as a CUDA graph: recorded once for each shape of its inputs, then replayed as one launch.

A LoRA step is thousands of small kernels; started one by one from Python they leave most of a card idle. A graph holds
forward, backward, clipping and (where the optimizer is made for it) the update. Noise and timesteps are drawn inside,
from the device's stream, which is seeded anew before every step, so a replayed step draws what a plain one would.
"""

from __future__ import annotations

import gc
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorapipe_engine.train.data.microbatch import MicroBatch, map_tensors, shape_of, tensors_of
from lorapipe_engine.train.recording import NotRecorded, record

Say = Callable[[str], None]
Accumulate = Callable[[Sequence[MicroBatch]], Tensor]  # forward and backward passes: their loss
Exchange = Callable[
    [Tensor], Tensor
]  # gradients added up over all processes: from the share of the loss that of all
Settle = Callable[[], Tensor]  # clip and step: the gradient's norm

PLAIN_RUNS = 2  # of a shape before it is recorded: they also set up the optimizer and the libraries
BUDGET = 0.05  # of the card's memory for what graphs take beside the largest one, whose room a plain step needs too


@dataclass
class _Recorded:
    """A graph, the buffers it reads, and the tensors it leaves its results in."""

    graph: torch.cuda.CUDAGraph
    inputs: list[MicroBatch]
    results: tuple[Tensor, ...]
    cost: int  # bytes that the card had less after it was recorded


class StepGraphs:
    """Runs the updates of one network, recorded where that works.

    All graphs share one memory pool, so that several take little more than the largest. What they take beside that is
    kept within ``budget`` bytes (None: BUDGET of the card): the graph that was not used for longest goes first.
    ``say`` is told once where recording does not work; training goes on without. ``alone``: no other process trains
    the same network. Else gradients are exchanged between the passes and the update, which has a graph of its own.
    """

    def __init__(self, say: Say, budget: int | None = None, *, alone: bool = True) -> None:
        self._say = say
        self._alone = alone
        # Threads of the library that adds up gradients may ask the card for something meanwhile.
        self._error_mode = "global" if alone else "thread_local"
        self._settling: tuple[Any, Tensor] | None = None  # a graph, and where it leaves the gradient's norm
        self._settled = 0
        self.budget = int(torch.cuda.mem_get_info()[1] * BUDGET) if budget is None else budget
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool: Any = None
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._graphs: OrderedDict[tuple[Any, ...], _Recorded] = OrderedDict()
        self._able = True

    def run(
        self,
        batches: Sequence[MicroBatch],
        accumulate: Accumulate,
        exchange: Exchange,
        settle: Settle,
        *,
        records_settle: bool,
    ) -> tuple[Tensor, Tensor]:
        """One update: the loss and the gradient's norm, both tensors.

        ``records_settle``: ``settle`` may be recorded too; else it runs after the graph.
        """
        key = tuple(shape_of(batch) for batch in batches)
        self._seen[key] += 1
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        norm = None
        # Plain steps run on the stream that is recorded, or autograd would wait for another one inside the graph.
        with torch.cuda.stream(self._stream):
            if self._able and self._seen[key] > PLAIN_RUNS and key not in self._graphs:
                self._record(key, batches, accumulate, settle if records_settle and self._alone else None)
            recorded = self._graphs.get(key)
            if recorded:
                loss, norm = self._replay(recorded, key, batches)
            else:
                loss = accumulate(batches)
        current.wait_stream(self._stream)
        if norm is not None:
            return loss, norm
        loss = exchange(loss)
        # Not on the recorded stream: bitsandbytes starts its kernels on the default one, whatever the current one is.
        return loss, self._settle(settle) if records_settle and not self._alone else settle()

    @property
    def shapes(self) -> list[tuple[Any, ...]]:
        """The shapes of the graphs that are kept, the latest used last."""
        return list(self._graphs)

    def _replay(
        self, recorded: _Recorded, key: tuple[Any, ...], batches: Sequence[MicroBatch]
    ) -> tuple[Tensor, Tensor | None]:
        """The loss, and the norm where the update is in the graph."""
        self._graphs.move_to_end(key)
        for target, source in zip(recorded.inputs, batches, strict=True):
            for into, tensor in zip(tensors_of(target), tensors_of(source), strict=True):
                into.copy_(tensor)
        recorded.graph.replay()
        # Another graph of the pool may write where this one left its results.
        loss, *norm = (result.clone() for result in recorded.results)
        return loss, norm[0] if norm else None

    def _record(
        self,
        key: tuple[Any, ...],
        batches: Sequence[MicroBatch],
        accumulate: Accumulate,
        settle: Settle | None,
    ) -> None:
        inputs = [map_tensors(batch, torch.clone) for batch in batches]

        def step() -> tuple[Tensor, ...]:
            loss = accumulate(inputs)
            return (loss,) if settle is None else (loss, settle())

        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # what plain steps left would lie idle beside the graphs' pool
        free = torch.cuda.mem_get_info()[0]
        try:
            graph, results = record(step, pool=self._pool, stream=self._stream, error_mode=self._error_mode)
        except NotRecorded as reason:
            self._able = False
            self._say(
                f"note: the step cannot be captured as a graph here ({reason}); training goes on without"
            )
            return
        cost = max(0, free - torch.cuda.mem_get_info()[0])
        self._graphs[key] = _Recorded(graph, inputs, results, cost)
        self._keep_budget()

    def _settle(self, settle: Settle) -> Tensor:
        """The update of one of several processes, recorded once it has run plainly: the gradient's norm."""
        self._settled += 1
        if not self._able or self._settled <= PLAIN_RUNS:
            return settle()
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            if self._settling is None:
                try:
                    self._settling = record(settle, stream=self._stream, error_mode=self._error_mode)
                except NotRecorded as reason:
                    self._able = False
                    self._say(f"note: the update cannot be captured as a graph here ({reason})")
            if self._settling is not None:
                self._settling[0].replay()
        current.wait_stream(self._stream)
        return settle() if self._settling is None else self._settling[1].clone()

    def _keep_budget(self) -> None:
        while len(self._graphs) > 1:
            costs = [row.cost for row in self._graphs.values()]
            if sum(costs) - max(costs) <= self.budget:
                return
            self._graphs.popitem(last=False)
