"""Preservation: a second term that holds the network's answer to the frozen base's, for captions that are to stay.

With x_t and t of the step's own pass, c' the caption that is held, f the model with its network and g without:

    loss = mean w·L(f(x_t, t, c), target)  +  weight · mean w·L(f(x_t, t, c'), g(x_t, t, c'))

L and w are the run's own loss and weights by timestep, g has no gradient and reads the frozen text encoders, and a mask
does not count in the second term: what a mask hides is not to change either. Where c' is another caption than c both
answers of f come from one pass of twice as many rows, or from two (``apart``). Nothing here draws random numbers of its
own or waits for the device.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models.families import is_text
from lorapipe_engine.nn.attach import Network
from lorapipe_engine.settings.preserve import Preserve
from lorapipe_engine.train.data.microbatch import Held, MicroBatch
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.families.text import Conditioning, Tokens
from lorapipe_engine.train.objective.objective import Noised, Objective
from lorapipe_engine.train.step.forward import Forward, draw, trained_at


@dataclass(frozen=True)
class HeldForward:
    """What the term's part of a pass made: the base's ``answer`` and the network's ``prediction``, (B, C, h, w), the
    ``losses`` (B,) before their ``weights`` (B,), and the term's ``loss`` without its weight, a scalar."""

    answer: Tensor
    prediction: Tensor
    losses: Tensor
    weights: Tensor
    loss: Tensor


class Preserving:
    """The passes of an update that hold the network to the base. ``apart``: one after the other; ``train_text``:
    whether the text encoders are trained."""

    def __init__(
        self,
        asked: Preserve,
        family: Family,
        network: Network,
        objective: Objective,
        *,
        apart: bool,
        train_text: bool,
    ) -> None:
        self.asked = asked
        self.family = family
        self.network = network
        self.objective = objective
        self.train_text = train_text
        shares = asked.te == asked.unet or not train_text
        # A pass of its own where a part is left out that the gradient goes through.
        self.is_joined = asked.unet > 0 and (not apart if asked.has_captions else shares)
        self.weight = asked.weight * (asked.unet or asked.te)
        self._text_share = asked.te / asked.unet if asked.unet else 1.0

    def is_at(self, step: int) -> bool:
        """Whether a step (from 0) has the term."""
        return step % self.asked.every == 0

    def joined(self, batch: MicroBatch) -> tuple[Forward, HeldForward]:
        """Both forward passes in one."""
        held = _held_of(batch)
        latents, noised = draw(self.family, self.objective, batch)
        answer = self._answer(batch, held, noised)
        rows = len(latents)
        if held.tokens is None:
            text = trained_at(self._text(batch.tokens, batch.text), noised.times, self.objective.options)
            own = other = self.family.predict(noised.input, noised.times, text, batch.geometry)
        else:
            text = self._joined_text(batch, held)
            both = torch.cat([noised.input] * 2), torch.cat([noised.times] * 2)
            text = trained_at(text, both[1], self.objective.options)
            geometry = None if batch.geometry is None else torch.cat([batch.geometry] * 2)
            own, other = torch.split(self.family.predict(*both, text, geometry), rows)
            text = _rows(text, slice(rows))
        losses = self.objective.losses(own, noised, batch.mask)
        return Forward(latents, noised, text, own, losses), self._held(held, noised, answer, other)

    def alone(self, batch: MicroBatch, noised: Noised) -> HeldForward:
        """The term's forward pass, on what was ``noised`` for the batch's own."""
        held = _held_of(batch)
        answer = self._answer(batch, held, noised)
        tokens, states = (batch.tokens, batch.text) if held.tokens is None else (held.tokens, held.text)
        text = _scaled(self._text(tokens, states), self._text_share)
        text = trained_at(text, noised.times, self.objective.options)
        prediction = self.family.predict(noised.input, noised.times, text, batch.geometry)
        return self._held(held, noised, answer, prediction)

    @contextmanager
    def within_parts(self) -> Iterator[None]:
        """Keep the gradient of a backward pass out of the denoiser, where the term is not for it."""
        group = self.network.groups.get(self.family.facts.denoiser)
        before = group.grad.clone() if group is not None and not self.asked.unet else None
        yield
        if group is not None and before is not None:
            group.grad.copy_(before)

    # ------------------------------------------------------------------------------------------- pieces

    @torch.no_grad()
    def _answer(self, batch: MicroBatch, held: Held, noised: Noised) -> Tensor:
        """What the base says, network and gradients off."""
        tokens, states = (batch.tokens, batch.text) if held.tokens is None else (held.tokens, held.text)
        with self.network.off():
            text = states or self.family.text.encode(tokens)
            return self.family.predict(noised.input, noised.times, text, batch.geometry)

    def _text(self, tokens: Tokens, states: Conditioning | None) -> Conditioning:
        if states is not None:
            return states
        with torch.set_grad_enabled(self.train_text):
            return self.family.text.encode(tokens)

    def _joined_text(self, batch: MicroBatch, held: Held) -> Conditioning:
        """The states of the batch's captions, and behind them of those that are held."""
        assert held.tokens is not None
        if batch.text is not None and held.text is not None:
            return Conditioning.joined([batch.text, held.text])
        text = self._text(Tokens.joined([batch.tokens, held.tokens]), None)
        if self._text_share == 1 or not self.train_text:
            return text
        rows = len(batch.latents)
        return Conditioning.joined(
            [_rows(text, slice(rows)), _scaled(_rows(text, slice(rows, None)), self._text_share)]
        )

    def _held(self, held: Held, noised: Noised, answer: Tensor, prediction: Tensor) -> HeldForward:
        losses = self.objective.losses(prediction, replace(noised, target=answer))
        weights = noised.weights * held.weights
        return HeldForward(answer, prediction, losses, weights, (losses * weights).mean())


def check_parts(asked: Preserve, trained: Collection[str]) -> None:
    """Raise ConfigError where the term is for parts that are not ``trained`` alone."""
    if not any(asked.te if is_text(part) else asked.unet for part in trained):
        name = "unet" if not asked.unet else "te"
        raise ConfigError(
            f"preserve: {name}=0 leaves out all that is trained ({', '.join(trained)}); give it more"
        )


def _held_of(batch: MicroBatch) -> Held:
    if batch.held is None:
        raise ValueError("this batch holds nothing to the base")
    return batch.held


def _rows(text: Conditioning, rows: slice) -> Conditioning:
    return replace(text, **{name: tensor[rows] for name, tensor in text.named().items()})


def _scaled(text: Conditioning, share: float) -> Conditioning:
    """The same states, of whose gradient a share goes on."""
    if share == 1:
        return text
    scaled = {
        # The difference is zero, to the last bit.
        name: tensor.detach() + (tensor - tensor.detach()) * share
        for name, tensor in text.named().items()
    }
    return replace(text, **scaled)
