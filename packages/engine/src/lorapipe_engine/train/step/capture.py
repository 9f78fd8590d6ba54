"""The step as a CUDA graph: recorded once for each shape of its inputs, then replayed as one launch.

A LoRA step is thousands of small kernels; started one by one from Python they leave most of a card idle. A graph holds
forward, backward, clipping and (where the optimizer is made for it) the update. Noise and timesteps are drawn inside,
from the device's stream, which is seeded anew before every step, so a replayed step draws what a plain one would.
"""

from __future__ import annotations

import gc
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lorapipe_engine.train.step.step import MicroBatch, Stepper

Say = Callable[[str], None]

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
    """Runs the steps of one :class:`Stepper`, recorded where that works.

    All graphs share one memory pool, so that several take little more than the largest. What they take beside that is
    kept within ``budget`` bytes (None: BUDGET of the card): the graph that was not used for longest goes first.
    ``say`` is told once where recording does not work; training goes on without.
    """

    def __init__(self, say: Say, budget: int | None = None) -> None:
        self._say = say
        self.budget = int(torch.cuda.mem_get_info()[1] * BUDGET) if budget is None else budget
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool: Any = None
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._graphs: OrderedDict[tuple[Any, ...], _Recorded] = OrderedDict()
        self._able = True

    def run(self, stepper: Stepper, batches: Sequence[MicroBatch]) -> tuple[Tensor, Tensor]:
        """One update: the loss and the gradient's norm, both tensors."""
        key = tuple(_shape_of(batch) for batch in batches)
        self._seen[key] += 1
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        norm = None
        # Plain steps run on the stream that is recorded, or autograd would wait for another one inside the graph.
        with torch.cuda.stream(self._stream):
            if self._able and self._seen[key] > PLAIN_RUNS and key not in self._graphs:
                self._record(stepper, key, batches)
            found = self._graphs.get(key)
            if found:
                loss, norm = self._replay(found, key, batches)
            else:
                loss = stepper.accumulate(batches)
        current.wait_stream(self._stream)
        # Not on the recorded stream: bitsandbytes starts its kernels on the default one, whatever the current one is.
        return loss, stepper.update() if norm is None else norm

    @property
    def shapes(self) -> list[tuple[Any, ...]]:
        """The shapes of the graphs that are kept, the latest used last."""
        return list(self._graphs)

    def _replay(
        self, found: _Recorded, key: tuple[Any, ...], batches: Sequence[MicroBatch]
    ) -> tuple[Tensor, Tensor | None]:
        """The loss, and the norm where the update is in the graph."""
        self._graphs.move_to_end(key)
        for target, source in zip(found.inputs, batches, strict=True):
            for into, tensor in zip(_tensors_of(target), _tensors_of(source), strict=True):
                into.copy_(tensor)
        found.graph.replay()
        # Another graph of the pool may write where this one left its results.
        loss, *norm = (result.clone() for result in found.results)
        return loss, norm[0] if norm else None

    def _record(self, stepper: Stepper, key: tuple[Any, ...], batches: Sequence[MicroBatch]) -> None:
        whole = _can_update_inside(stepper)
        inputs = [_copy_of(batch) for batch in batches]
        graph = torch.cuda.CUDAGraph()
        draws = torch.cuda.get_rng_state()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # what plain steps left would lie idle beside the graphs' pool
        free = torch.cuda.mem_get_info()[0]
        try:
            # Threads of the library that adds up gradients may ask the card for something meanwhile.
            mode = "global" if stepper.processes.count == 1 else "thread_local"
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=mode):
                results = stepper.run_plain(inputs) if whole else (stepper.accumulate(inputs),)
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            self._able = False
            torch.cuda.set_rng_state(draws)
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._say(
                f"note: the step cannot be captured as a graph here ({reason}); training goes on without"
            )
            return
        cost = max(0, free - torch.cuda.mem_get_info()[0])
        self._graphs[key] = _Recorded(graph, inputs, results, cost)
        self._keep_budget()

    def _keep_budget(self) -> None:
        while len(self._graphs) > 1:
            costs = [row.cost for row in self._graphs.values()]
            if sum(costs) - max(costs) <= self.budget:
                return
            self._graphs.popitem(last=False)


def why_not(stepper: Stepper) -> str | None:
    """Why a stepper's steps cannot be captured; None if they can."""
    if stepper.family.device.type != "cuda":
        return "not on a CUDA device"
    if stepper.objective.multires_noise_iterations:
        return "multires noise draws sizes"
    return None


def _can_update_inside(stepper: Stepper) -> bool:
    if stepper.scaler.is_enabled():
        return False  # in fp16 the CPU decides whether a step counts
    if stepper.processes.count > 1:
        return False  # gradients are added up between the graph and the update
    optimizer = stepper.optimizer
    return all(row.get("capturable") and isinstance(row["lr"], Tensor) for row in optimizer.param_groups)


def _slots_of(batch: MicroBatch) -> list[Tensor | None]:
    """Every tensor that a batch may hold, None where it has none."""
    text = batch.text
    return [
        *(batch.latents, *batch.ids, batch.weights, batch.geometry, batch.mask),
        *(batch.text_weights or ()),
        *(() if text is None else (text.hidden, text.pooled)),
    ]


def _tensors_of(batch: MicroBatch) -> list[Tensor]:
    return [tensor for tensor in _slots_of(batch) if tensor is not None]


def _shape_of(batch: MicroBatch) -> tuple[Any, ...]:
    shapes = (None if tensor is None else tuple(tensor.shape) for tensor in _slots_of(batch))
    return (*shapes, batch.text_weights is None, batch.text is None, batch.part)


def _copy_of(batch: MicroBatch) -> MicroBatch:
    text = batch.text
    return replace(
        batch,
        latents=batch.latents.clone(),
        ids=tuple(ids.clone() for ids in batch.ids),
        weights=batch.weights.clone(),
        geometry=_clone(batch.geometry),
        mask=_clone(batch.mask),
        text_weights=batch.text_weights and tuple(row.clone() for row in batch.text_weights),
        text=text and replace(text, hidden=text.hidden.clone(), pooled=_clone(text.pooled)),
    )


def _clone(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()
