"""A forward pass: a batch's latents and captions to the loss of each row. Training and validation share it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorapipe_engine.settings import LossSettings
from lorapipe_engine.train.data.microbatch import MicroBatch
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.families.text import Conditioning
from lorapipe_engine.train.objective.objective import Noised, Objective


@dataclass(frozen=True)
class Forward:
    """What a forward pass made: ``latents`` (B, C, h, w) as drawn and scaled, what was made of them, the captions'
    states, the model's ``prediction`` (B, C, h, w) and the ``losses`` (B,) before their weights."""

    latents: Tensor
    noised: Noised
    text: Conditioning
    prediction: Tensor
    losses: Tensor


def forward(
    family: Family,
    objective: Objective,
    batch: MicroBatch,
    *,
    text: Conditioning | None = None,
    time: float | None = None,
) -> Forward:
    """Draw latents, noise and times, predict, compare. ``text`` replaces encoding the captions; ``time``: this one for
    every row, in the place of drawn ones.
    """
    latents, noised = draw(family, objective, batch, time)
    if text is None:
        text = family.text.encode(batch.tokens)
    text = trained_at(text, noised.times, objective.options)
    prediction = family.predict(noised.input, noised.times, text, batch.geometry)
    losses = objective.losses(prediction, noised, batch.mask)
    return Forward(latents, noised, text, prediction, losses)


def draw(
    family: Family, objective: Objective, batch: MicroBatch, time: float | None = None
) -> tuple[Tensor, Noised]:
    """The latents of a batch (B, C, h, w), scaled, and what is made of them."""
    # Drawn for the whole batch, of which these rows may be a share, so that shares draw what the whole would.
    start, total = batch.part or (0, len(batch.latents))
    rows = slice(start, start + len(batch.latents))
    latents = family.draw_latents(batch.latents, rows, total)
    return latents, objective.draw(whole_of(latents, rows, total), time).rows(rows)


def trained_at(text: Conditioning, times: Tensor, options: LossSettings) -> Conditioning:
    """The states of a batch's captions, of which those outside the text encoders' range of times (B,) train nothing."""
    low, high = options.text_encoder_min_timestep, options.text_encoder_max_timestep
    if (low, high) == (0, 1000) or not text.hidden.requires_grad:
        return text
    trains = (times >= low) & (times < high)  # (B,)
    parts = {
        name: torch.where(trains.view(-1, *[1] * (states.ndim - 1)), states, states.detach())
        for name, states in text.named().items()
    }
    return replace(text, **parts)


def whole_of(latents: Tensor, rows: slice, total: int) -> Tensor:
    """A batch of ``total`` rows that has ``latents`` in its ``rows``, and zeros elsewhere."""
    if len(latents) == total:
        return latents
    whole = latents.new_zeros(total, *latents.shape[1:])
    whole[rows] = latents
    return whole


def seed_step(seed: int, step: int) -> None:
    """Give a step random streams of its own, so that a run can go on anywhere with the same draws."""
    # A multiplier far above any step count keeps runs of neighbouring seeds apart.
    torch.manual_seed((seed * 1_000_003 + step) % 2**63)
