"""What an objective is to the step, the validation and the sampler: what the model is shown, and what it should say.

A new objective is a class of this in a file of its own, and a row in :data:`lorapipe_engine.models.predictions`.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models.predictions import PREDICTIONS
from lorapipe_engine.settings import LossSettings


@dataclass(frozen=True)
class Noised:
    """A batch as it is trained.

    ``input`` (B, C, h, w) is what the model is shown at ``times`` (B,), ``target`` (B, C, h, w) what it should answer,
    ``weights`` (B,) those of the losses, ``noise`` (B, C, h, w) what was drawn, which traces record.
    """

    input: Tensor
    times: Tensor
    target: Tensor
    weights: Tensor
    noise: Tensor

    def rows(self, rows: slice) -> Noised:
        """Some rows of the batch."""
        return replace(self, **{row.name: getattr(self, row.name)[rows] for row in fields(self)})


class Sampler(Protocol):
    """The walk from noise to a picture, as diffusers' schedulers have it."""

    timesteps: Tensor
    init_noise_sigma: Any

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor:
        """What the model is shown of ``sample``."""
        ...

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **more: Any) -> Any:
        """One step; ``prev_sample`` of the result is the next sample."""
        ...


class Objective(ABC):
    """What a run learns. ``options`` are whole (see :func:`lorapipe_engine.settings.with_base_defaults`);
    ``prediction`` is the name of the base's row in :data:`lorapipe_engine.models.predictions.PREDICTIONS`.

    All draws come from torch's global streams. Nothing waits for the device, and shapes are the same at every step
    unless :attr:`why_not_captured` says otherwise.
    """

    last_time: ClassVar[float] = 1000.0  # times go from 0 to this
    latent_factor = 8  # pixels on a side for one latent cell; a family says its own
    samplers: ClassVar[
        tuple[str, ...]
    ]  # names for sample_sampler; the first is the one that is taken unasked

    def __init__(self, options: LossSettings, prediction: str, device: torch.device | str = "cpu") -> None:
        self.options = options
        self.prediction = prediction
        self.device = torch.device(device)

    @classmethod
    def check(cls, options: LossSettings, prediction: str | None) -> list[str]:  # noqa: ARG003
        """What the user should know of the options. ``prediction`` is None as long as the base is not known.

        Raises ConfigError for options that mean nothing together.
        """
        return []

    @classmethod
    def check_sampler(cls, name: str | None) -> None:
        """Raise ConfigError for a sampler that there is not; None is the usual one."""
        if name is not None and name not in cls.samplers:
            raise ConfigError(f"sample_sampler: '{name}' is unknown; one of {', '.join(cls.samplers)}")

    @property
    def why_not_captured(self) -> str | None:
        """Why steps of this objective cannot be captured as a CUDA graph; None if they can."""
        return None

    @property
    def why_not_shared(self) -> str | None:
        """What several processes, which have a share of each batch, cannot compute; None if they can."""
        return None

    @abstractmethod
    def draw(self, latents: Tensor, time: float | None = None) -> Noised:
        """Draw noise and times for scaled latents (B, C, h, w); ``time``: this one for every row, none is drawn."""

    @abstractmethod
    def losses(self, prediction: Tensor, noised: Noised, mask: Tensor | None = None) -> Tensor:
        """Loss of each row before its weight, (B,) float32. ``mask`` (B, 1, h, w) in 0..1; it is not renormalised."""

    @abstractmethod
    def validation_times(self, count: int) -> list[float]:
        """Times that the validation loss is measured at, up to ``count`` spread over those that are trained."""

    @abstractmethod
    def sampler(self, name: str | None, steps: int) -> Sampler:
        """The sampler called ``name`` (None: the usual one) over ``steps`` steps. Raises ConfigError."""


def objective_class(prediction: str) -> type[Objective]:
    """The class that trains a prediction, from its row."""
    module, _, name = PREDICTIONS[prediction].objective.partition(":")
    kind: type[Objective] = getattr(importlib.import_module(module), name)
    return kind
