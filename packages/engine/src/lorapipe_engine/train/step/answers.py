"""Answers of the denoiser without gradients, each kind of question recorded as a CUDA graph and then replayed.

A graph reads what is asked from buffers of its own, and the network where it is trained, so that it serves every step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorapipe_engine.train.data.microbatch import map_tensors, shape_of, tensors_of
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.families.text import Conditioning
from lorapipe_engine.train.recording import NotRecorded, record

PLAIN_RUNS = 2  # of a kind of question before it is recorded: they set up the libraries
MOST_KINDS = 8  # of questions whose graphs are kept

Say = Callable[[str], None]


@dataclass(frozen=True)
class Question:
    """What the denoiser is asked: ``shown`` (B, C, h, w), ``times`` (B,), ``text`` and ``geometry`` (B, 6) or None."""

    shown: Tensor
    times: Tensor
    text: Conditioning
    geometry: Tensor | None


class Answers:
    """Answers of a family's denoiser, (B, C, h, w)."""

    def __init__(self, family: Family) -> None:
        self._family = family
        self._say: Say | None = None
        self._runs: Counter[Hashable] = Counter()
        self._kinds: dict[Hashable, tuple[Any, Question, Tensor]] = {}

    def record(self, say: Say) -> None:
        """Record graphs from now on. ``say`` is told once where that does not work."""
        self._say = say

    @torch.no_grad()
    def __call__(self, question: Question) -> Tensor:
        """The answer, by the network as it is. Where graphs are recorded its strength is the same at every call."""
        key = shape_of(question)
        self._runs[key] += 1
        if self._say is not None and key not in self._kinds and self._runs[key] > PLAIN_RUNS:
            self._record(key, question, self._say)
        if key not in self._kinds:
            return self._answer(question)
        graph, inputs, answer = self._kinds[key]
        for into, tensor in zip(tensors_of(inputs), tensors_of(question), strict=True):
            into.copy_(tensor)
        graph.replay()
        return answer.clone()  # the next one is left in the same place

    def _answer(self, question: Question) -> Tensor:
        return self._family.predict(question.shown, question.times, question.text, question.geometry)

    def _record(self, key: Hashable, question: Question, say: Say) -> None:
        if len(self._kinds) >= MOST_KINDS:
            self._kinds.clear()
        inputs = map_tensors(question, torch.clone)
        try:
            graph, answer = record(lambda: self._answer(inputs))
        except NotRecorded as reason:
            self._say = None
            say(f"note: a slider's way to a picture is not captured ({reason}); it goes on without")
            return
        self._kinds[key] = graph, inputs, answer
