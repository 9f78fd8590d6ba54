"""A slider's forward pass: the network learns a direction between prompts, on pictures that the model makes itself.

LECO (p1atdev 2023), after Gandikota et al. 2023, "Erasing Concepts from Diffusion Models" and "Concept Sliders". With
the base's answers e to noisy latents x_t, which the network has led to from noise by the target prompt, the network's
answer to the target is to be

    e(x_t, neutral) + s · (e(x_t, positive) - e(x_t, negative))

and, where both directions are learned, at strength -1 the same with -s. What e is, noise, v or flow, does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lorapipe_engine.datasets.pairs import Pairs
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.nn.attach import Network
from lorapipe_engine.settings import LossSettings
from lorapipe_engine.train.data.microbatch import MicroBatch
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.families.text import Conditioning, Tokens
from lorapipe_engine.train.objective.objective import Noised, Objective, objective_class
from lorapipe_engine.train.step.answers import Answers, Question
from lorapipe_engine.train.step.forward import Forward


def places_of(objective: Objective, pairs: Pairs) -> list[int]:
    """The steps of the way from noise to a picture, from 0, that are trained. Raises ConfigError where none is."""
    low, high = objective.options.min_timestep, objective.options.max_timestep
    times = objective.sampler(None, pairs.steps).timesteps.tolist()
    # Pure noise shows nothing of a picture, so the way is gone a step at least.
    places = [place for place, time in enumerate(times) if place and low <= time < high]
    if not places:
        raise ConfigError(
            f"min_timestep: none of the slider's {pairs.steps} steps lies in {low} to {high}; give a wider range"
        )
    return places


def check_places(predictions: Sequence[str], options: LossSettings, pairs: Pairs) -> None:
    """Raise ConfigError where a base of none of ``predictions`` has a step that is trained."""
    refused: list[ConfigError] = []
    for prediction in predictions:
        try:
            places_of(objective_class(prediction)(options, prediction), pairs)
        except ConfigError as error:
            refused.append(error)
    if len(refused) == len(predictions):
        raise refused[0]


class Slide:
    """The forward pass of a slider's batches. ``objective`` tells the times and the way from noise to a picture.

    Raises ConfigError where no time of that way lies in min_timestep..max_timestep.
    """

    def __init__(self, family: Family, objective: Objective, network: Network, pairs: Pairs) -> None:
        self.family, self.objective, self.network, self.pairs = family, objective, network, pairs
        self.answers = Answers(family)
        self._places = places_of(objective, pairs)
        # Where activations are not kept, the passes back come when no strength is set any more.
        family.recomputed = network.scaled_as_now

    def __call__(self, batch: MicroBatch, *, train_text: bool) -> Forward:
        """The losses of a batch that is :meth:`walked`."""
        texts, noised = batch.slider, batch.walked
        if texts is None or noised is None:
            raise ValueError("no prompts of a slider in this batch, or no latents")
        with torch.no_grad(), self.network.scaled(0.0):
            positive, negative, neutral = (
                self._predict(noised, self._states(tokens), batch)
                for tokens in (texts.positive, texts.negative, texts.neutral)
            )
        change = texts.strengths.view(-1, 1, 1, 1) * (positive - negative)
        passes: list[Forward] = []
        for direction in (1.0, -1.0) if self.pairs.both else (1.0,):
            with self.network.scaled(direction):
                with torch.set_grad_enabled(train_text and torch.is_grad_enabled()):
                    text = self._states(batch.tokens)
                prediction = self._predict(noised, text, batch)
            aimed = Noised(
                noised.input, noised.times, neutral + direction * change, noised.weights, noised.noise
            )
            losses = self.objective.losses(prediction, aimed)
            passes.append(Forward(noised.noise, aimed, text, prediction, losses))
        first = passes[0]
        losses = torch.stack([made.losses for made in passes]).mean(dim=0)
        return Forward(first.latents, first.noised, first.text, first.prediction, losses)

    # ---------------------------------------------------------------- from noise to a picture

    @torch.no_grad()
    def walked(self, batch: MicroBatch) -> MicroBatch:
        """The batch with latents that the network has led to from noise, to a time that is drawn. Noise and time come
        from torch's global streams."""
        start, total = batch.part or (0, len(batch.latents))
        rows = slice(start, start + len(batch.latents))
        channels = batch.latents.shape[1] // 2
        # Drawn for the whole batch, of which these rows may be a share.
        noise = torch.randn(total, channels, *batch.latents.shape[2:], device=batch.latents.device)[rows]
        place = self._places[int(torch.randint(len(self._places), (1,), device="cpu"))]
        walk = self.objective.sampler(None, self.pairs.steps)
        latents: Tensor = noise * walk.init_noise_sigma
        self.network.train(False)
        text = Conditioning.joined(self._both(batch))
        geometry = None if batch.geometry is None else torch.cat([batch.geometry] * 2)
        for time in walk.timesteps[:place]:
            shown = torch.cat([walk.scale_model_input(latents, time)] * 2)
            times = time.to(shown.device).expand(len(shown))
            without, towards = self.answers(Question(shown, times, text, geometry)).chunk(2)
            guided = without + self.pairs.guidance * (towards - without)
            latents = walk.step(guided, time, latents).prev_sample
        self.network.train()
        time = walk.timesteps[place]
        shown = walk.scale_model_input(latents, time)
        times = time.to(noise.device).expand(len(noise))
        ones = torch.ones(len(noise), device=noise.device)
        return replace(batch, walked=Noised(shown, times, torch.zeros_like(shown), ones, noise))

    def _both(self, batch: MicroBatch) -> Sequence[Conditioning]:
        """The states of no prompt and of the target."""
        if batch.slider is None:
            raise ValueError("no prompts of a slider in this batch")
        return [self._states(batch.slider.empty), self._states(batch.tokens)]

    def _states(self, tokens: Tokens) -> Conditioning:
        return self.family.text.encode(tokens)

    def _predict(self, noised: Noised, text: Conditioning, batch: MicroBatch) -> Tensor:
        return self.family.predict(noised.input, noised.times, text, batch.geometry)
