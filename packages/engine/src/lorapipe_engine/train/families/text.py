"""What reads the captions of a model family, behind one interface for every kind of text encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.sampling.prompts.attention import BREAK, parse_prompt
from lorapipe_engine.train.base.modules import place, weights_key


@dataclass(frozen=True)
class Tokens:
    """Captions as numbers: ``ids``, an int64 tensor (B, ...) for each tokenizer, and ``weights``, multipliers of the
    states (B, L) for each, or None where every token counts alike."""

    ids: tuple[Tensor, ...]
    weights: tuple[Tensor, ...] | None = None

    def rows(self, rows: Sequence[int]) -> Tokens:
        """Some of the captions."""
        chosen = list(rows)
        weights = self.weights and tuple(tensor[chosen] for tensor in self.weights)
        return Tokens(tuple(tensor[chosen] for tensor in self.ids), weights)

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """The captions of several, one behind the other; either all have weights or none."""
        ids = tuple(torch.cat(tensors) for tensors in zip(*(part.ids for part in parts), strict=True))
        weights = [part.weights for part in parts if part.weights is not None]
        joined = tuple(torch.cat(tensors) for tensors in zip(*weights, strict=True)) if weights else None
        return cls(ids, joined)


@dataclass(frozen=True)
class Conditioning:
    """What the denoiser is told: text states ``hidden`` (B, L, C), and for some families ``pooled`` (B, P)."""

    hidden: Tensor
    pooled: Tensor | None = None

    def named(self) -> dict[str, Tensor]:
        """The tensors that there are, by the names of their fields."""
        tensors = {row.name: getattr(self, row.name) for row in fields(self)}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def row(self, number: int) -> Conditioning:
        """The states of one caption, without B, copied to the CPU."""
        own = {name: tensor[number].cpu().clone() for name, tensor in self.named().items()}
        return replace(self, **own)

    def zeros(self) -> Conditioning:
        """As much of nothing."""
        return replace(self, **{name: torch.zeros_like(tensor) for name, tensor in self.named().items()})

    def rows(self, rows: slice) -> Conditioning:
        """Some of the captions."""
        return replace(self, **{name: tensor[rows] for name, tensor in self.named().items()})

    @classmethod
    def joined(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """The captions of several, one behind the other; all have the same fields and lengths."""
        named = [part.named() for part in parts]
        return cls(**{name: torch.cat([row[name] for row in named]) for name in named[0]})

    @classmethod
    def stacked(cls, rows: Sequence[Conditioning], device: torch.device) -> Conditioning:
        """The states of several captions of :meth:`row`, on a device."""
        named = [row.named() for row in rows]
        return cls(
            **{
                name: torch.stack([row[name] for row in named]).to(device, non_blocking=True)
                for name in named[0]
            }
        )


@dataclass(frozen=True)
class AskedPrompt:
    """A prompt for drawing; families may read an empty negative one otherwise."""

    text: str
    is_negative: bool = False


class TextEncoder(ABC):
    """The text encoders of a base model, frozen, by the names of their parts ("te1", "te2"), in ``modules``.

    ``limit``: tokens of a caption that are read, without the marks around them; ``longer``: the next higher limit that
    ``max_token_length`` may set, or None. ``clip_skip``: as for :meth:`~.base.Family.make_text`; may be set at any
    time, and is not read by encoders to which it means nothing.
    """

    clip_skip: int | None = None
    limit: int
    longer: int | None = None

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        *,
        device: torch.device,
        dtype: torch.dtype,
        waiting: bool = False,
    ) -> None:
        self.device = device
        self.dtype = dtype
        at = torch.device("cpu") if waiting else device
        self.modules: dict[str, Any] = {part: place(module, at, dtype) for part, module in modules.items()}
        self._stayed: dict[str, list[tuple[nn.Parameter, Tensor]]] = {part: [] for part in modules}

    # ---------------------------------------------------------------- captions

    @abstractmethod
    def tokenize(self, texts: Sequence[str], *, weighted: bool = False) -> Tokens:
        """Captions as tokens; longer ones are cut. ``weighted``: they hold weights, as ``a (red:1.2) cat``."""

    @abstractmethod
    def count(self, text: str) -> int:
        """Tokens that a caption has, without the marks around it."""

    @abstractmethod
    def encode(self, tokens: Tokens) -> Conditioning:
        """Tokens of :meth:`tokenize` to what the denoiser is told, differentiable; nothing in it waits for the device.

        The tokens may lie on any device.
        """

    def encode_prompts(self, asked: Sequence[AskedPrompt]) -> list[Conditioning]:
        """The states of each prompt for drawing, B = 1, any length L: weights as ``(red:1.2)``, BREAK begins a chunk.

        Raises ConfigError for BREAK where an encoder has no chunks.
        """
        if any(BREAK in parse_prompt(prompt.text) for prompt in asked):
            raise ConfigError("BREAK: this base's text encoder reads no chunks; leave it out")
        states = self.encode(self.tokenize([prompt.text for prompt in asked], weighted=True))
        return [states.rows(slice(row, row + 1)) for row in range(len(asked))]

    @property
    def cache_key(self) -> str:
        """A name for all that the states depend on besides the tokens: weights, precision, layer."""
        return weights_key(list(self.modules.values()), self.dtype)

    # ---------------------------------------------------------------- memory

    def move_to_cpu(self) -> None:
        """Send the encoders to the CPU, to make room; :meth:`move_to_device` brings them back."""
        for part, module in self.modules.items():
            for parameter, value in self._stayed[part]:
                parameter.data = value
            self._stayed[part].clear()
            module.to("cpu")

    def move_to_device(self, *, for_good: bool = False) -> None:
        """Have the encoders on the device. Unless ``for_good``, their values stay on the CPU too, so that nothing has
        to be copied when they leave; they must not be trained in between."""
        for part, module in self.modules.items():
            if next(module.parameters()).device.type != self.device.type:
                if not for_good:
                    self._stayed[part] += [(parameter, parameter.data) for parameter in module.parameters()]
                module.to(self.device)

    def checkpoint_activations(self, settings: Mapping[str, Any]) -> None:
        """Recompute activations in the backward pass; ``settings`` are those of :func:`torch.utils.checkpoint`."""
        for module in self.modules.values():
            # transformers 5.2x renamed it; the old name warns there.
            name = "activation_checkpointing_enable"
            if not hasattr(module, name):
                name = "gradient_checkpointing_enable"
            getattr(module, name)(dict(settings))
            # The library only recomputes in training mode; there is no dropout in these models.
            module.train()
