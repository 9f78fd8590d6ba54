"""The loss on pictures that are never trained: the one curve that tells learning from learning by heart.

Noise, timesteps, latents and captions are the same every time, so that one figure differs from the next by what the
network has learned alone. Nothing here touches what training draws: every step seeds its streams itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lorapipe_engine.datasets.scan import Dataset
from lorapipe_engine.pictures.batches import Batch, in_batches
from lorapipe_engine.pictures.captions import START, CaptionRule, fixed_caption
from lorapipe_engine.settings import RunSettings
from lorapipe_engine.train.data.examples import TrainingData
from lorapipe_engine.train.data.microbatch import MicroBatch
from lorapipe_engine.train.judging import Judge
from lorapipe_engine.train.optimizers import evaluating
from lorapipe_engine.train.results.best import Best
from lorapipe_engine.train.results.results import Results
from lorapipe_engine.train.results.state import State
from lorapipe_engine.train.step.forward import forward, seed_step
from lorapipe_engine.train.step.step import Stepper

TIMES = 4  # timesteps that each picture is measured at
# How a subset shows a picture that is not varied.
_AS_IT_IS: Mapping[str, Any] = {
    **{"flip": False, "colour": False, "random_crop": False},
    "captions": CaptionRule(),
}


def validation_part(dataset: Dataset) -> Dataset:
    """The pictures that are kept from training, as a dataset that is shown as it is: no mirror, cut at the centre."""
    folders = tuple(replace(row, subset=replace(row.subset, **_AS_IT_IS)) for row in dataset.folders)
    pictures = tuple(
        replace(row, caption=fixed_caption(row.caption, dataset.subset_of(row).captions))
        for row in dataset.validation
    )
    return replace(dataset, pictures=pictures, folders=folders, validation=())


@dataclass(frozen=True)
class Measured:
    """The mean loss, and that at each of the fixed timesteps."""

    loss: float
    by_time: Mapping[float, float]


class Validation:
    """Measures the loss on the pictures that are kept from training, when it is time to.

    ``data`` holds these pictures (None: there are none), of which ``limit`` batches are used. ``results`` gets the
    figures, as ``loss/validation/...``. ``judge``: what says in the loss's place where the run ends.
    """

    def __init__(
        self,
        data: TrainingData | None,
        stepper: Stepper,
        run: RunSettings,
        seed: int,
        judge: Judge | None = None,
    ) -> None:
        self.data = data
        self._judge = judge
        self.stepper = stepper
        self.seed = seed
        self.every_steps = run.validate_every_n_steps
        self.every_epochs = run.validate_every_n_epochs or (None if self.every_steps else 1)
        self._limit = run.max_validation_steps
        self._best = Best(run.early_stop if judge is None else None)
        self._last: tuple[int, Measured] | None = None

    def after_step(self, state: State, results: Results) -> None:
        """Measure and record if it is time to."""
        if self.data is not None and self.every_steps and state.step % self.every_steps == 0:
            self._record("step", state, state.epoch, results)

    def after_epoch(self, state: State, epoch: int, results: Results, *, last: bool) -> None:
        """Measure and record if it is time to. ``epoch``: the number of those finished with this one."""
        if self.data is not None and self.every_epochs and epoch % self.every_epochs == 0:
            self._record("epoch", state, epoch, results)
        if self._judge is not None:
            self._judge.after_epoch(state, epoch, results, last=last)

    def _record(self, kind: str, state: State, epoch: int, results: Results) -> None:
        if self._last is None or self._last[0] != state.step:
            self._last = state.step, self.measure()
        measured = self._last[1]
        figures: Mapping[str, float] = {
            f"loss/validation/{kind}_average": measured.loss,
            # What is learned by heart is better known than what is not: the gap grows.
            f"loss/validation/{kind}_divergence": measured.loss - state.loss,
            **{f"loss/validation/{kind}_at_{time:g}": loss for time, loss in measured.by_time.items()},
        }
        results.log.scalars(state.step, figures)
        self._best.after_measuring(measured.loss, state, epoch, results)

    def is_over(self, state: State) -> bool:
        """Whether the run ends here, as it was not better for long enough."""
        return (self._judge or self._best).is_over(state)

    def told(self, state: State, results: Results) -> list[str]:
        """Which network was the best, in lines, where that was asked."""
        return (self._judge or self._best).told(state, results)

    def measure(self) -> Measured:
        """The mean losses of the pictures at fixed timesteps, weighted as in training."""
        data, network = self.data, self.stepper.network
        if data is None:
            raise ValueError("no pictures to measure")
        network.train(False)
        processes = self.stepper.processes  # which share the batches out
        times = self.stepper.objective.validation_times(TIMES)
        total = torch.zeros((), device=data.family.device)
        count = torch.zeros_like(total)
        by_time = torch.zeros(len(times), device=data.family.device)
        with torch.no_grad(), evaluating(self.stepper.optimizer):
            for number, batch in enumerate(islice(self._batches(data), self._limit)):
                # As a step has: of its own, and the same at every time.
                if number % processes.count != processes.index:
                    continue
                losses = self._losses(data.micro_batch(batch, START, 1.0), number)
                total += losses.sum()
                count += losses.numel()
                by_time += losses.sum(dim=1)
        network.train()
        processes.add_up([total, count, by_time])
        means = (by_time * len(times) / count).tolist()
        return Measured(float(total / count), dict(zip(times, means, strict=True)))

    def _batches(self, data: TrainingData) -> Sequence[Batch]:
        return in_batches(data.dataset.buckets, data.dataset.repeats, data.dataset.batch_sizes)

    def _losses(self, batch: MicroBatch, number: int) -> Tensor:
        """Losses of a batch at each time, (times, B). The same latents and noise are drawn for every time."""
        stepper, objective = self.stepper, self.stepper.objective
        text = batch.text or stepper.family.text.encode(batch.tokens)
        losses = []
        for time in objective.validation_times(TIMES):
            seed_step(self.seed, number)
            made = forward(stepper.family, objective, batch, text=text, time=time)
            losses.append(made.losses * made.noised.weights)
        return torch.stack(losses)
