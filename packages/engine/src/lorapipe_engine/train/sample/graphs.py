"""Evaluations of a fused denoiser with guidance, each kind of batch recorded as a CUDA graph and then replayed.

A graph reads the latents, the time, the guidance and the text from buffers of its own, and the networks from the
denoiser's slots, so that it serves every picture of its size, and every network that has room in the slots.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lorapipe_engine.nn.fused.drawing.unet import Drawing
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.families.text import Conditioning
from lorapipe_engine.train.recording import NotRecorded, record
from lorapipe_engine.train.sample.draw import Guidance, Predict, evaluate_guided

PLAIN_RUNS = 1  # of a kind of batch before it is recorded: they set up the libraries
MOST_KINDS = 16  # of batches whose graphs and buffers are kept

Say = Callable[[str], None]


@dataclass
class _Kind:
    """The buffers that evaluations of one kind of batch read, and the graph once there is one."""

    latents: Tensor
    time: Tensor
    guidance: Guidance
    graph: Any = None
    answer: Tensor | None = None


class GuidedGraphs:
    """Guided evaluations of a family whose denoiser is a :class:`Drawing`.

    ``capture``: record them. ``say`` is told once where that does not work; they run uncaptured then.
    """

    def __init__(self, family: Family, drawing: Drawing, say: Say, *, capture: bool = True) -> None:
        self._family, self._drawing, self._say = family, drawing, say
        self._able = capture
        self._kinds: dict[tuple[object, ...], _Kind] = {}
        self._runs: Counter[tuple[object, ...]] = Counter()
        self._version = drawing.slots.version
        self._pool: Any = None

    @property
    def recorded(self) -> int:
        """How many kinds of batches have a graph."""
        return sum(kind.graph is not None for kind in self._kinds.values())

    def predictor(self, guidance: Guidance, latents: Tensor) -> Predict:
        """Evaluations of one batch, of the shape of its ``latents``. Those of a batch before are of no use any more."""
        if self._version != self._drawing.slots.version:
            self.forget()
        key = (*latents.shape, *(tuple(text.hidden.shape) for text in guidance.texts))
        if key not in self._kinds:
            if len(self._kinds) >= MOST_KINDS:
                self.forget()
            self._kinds[key] = self._made(guidance, latents)
        kind = self._kinds[key]
        kind.guidance.scale.copy_(guidance.scale)
        for own, text in zip(kind.guidance.texts, guidance.texts, strict=True):
            for name, tensor in own.named().items():
                tensor.copy_(text.named()[name])
            self._drawing.tell(own.hidden)
        return partial(self._predict, key, kind)

    def forget(self) -> None:
        """Drop all graphs and buffers."""
        self._kinds.clear()
        self._runs.clear()
        self._drawing.forget()
        self._version, self._pool = self._drawing.slots.version, None

    @torch.inference_mode(False)
    @torch.no_grad()
    def _made(self, guidance: Guidance, latents: Tensor) -> _Kind:
        """Buffers of a kind of batch. The geometry follows from the pictures' size."""
        texts = []
        for text in guidance.texts:
            # In the denoiser's dtype, so that it is given this very tensor, which it was told.
            tensors = {
                name: torch.empty(tensor.shape, dtype=self._family.dtype, device=self._family.device)
                for name, tensor in text.named().items()
            }
            texts.append(Conditioning(**tensors))
        geometry = None if guidance.geometry is None else guidance.geometry.clone()
        own = Guidance(tuple(texts), geometry, torch.zeros_like(guidance.scale))
        return _Kind(torch.zeros_like(latents), torch.zeros(1, device=latents.device), own)

    def _predict(self, key: tuple[object, ...], kind: _Kind, latents: Tensor, time: Tensor) -> Tensor:
        kind.latents.copy_(latents)
        kind.time.copy_(time)
        if kind.graph is None and self._able and self._runs[key] >= PLAIN_RUNS:
            self._record(kind)
        self._runs[key] += 1
        if kind.graph is None:
            return self._evaluate(kind)
        kind.graph.replay()
        assert kind.answer is not None
        return kind.answer.clone()  # another graph of the pool may write where this one left its answer

    def _evaluate(self, kind: _Kind) -> Tensor:
        return evaluate_guided(self._family, kind.guidance, kind.latents, kind.time)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _record(self, kind: _Kind) -> None:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        try:
            kind.graph, kind.answer = record(lambda: self._evaluate(kind), pool=self._pool)
        except NotRecorded as reason:
            self._able = False
            self._say(
                f"note: evaluations cannot be captured as a graph here ({reason}); drawing goes on without"
            )
