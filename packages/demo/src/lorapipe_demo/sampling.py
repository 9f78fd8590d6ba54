"""Draw with the demo base, or one that a network was merged into, with or without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lorapipe_demo.recipe import GUIDANCE, SAMPLER, STEPS
from lorapipe_engine.models.bases import demo_base
from lorapipe_engine.models.predictions import EPSILON
from lorapipe_engine.nn.attach import detach
from lorapipe_engine.nn.base import Adapter
from lorapipe_engine.settings import LossSettings
from lorapipe_engine.train.base.load import load_base
from lorapipe_engine.train.families import open_family
from lorapipe_engine.train.network.files.apply import attach_file
from lorapipe_engine.train.plan import choose_device
from lorapipe_engine.train.sample.draw import draw
from lorapipe_engine.train.sample.prompts import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image


class Painter:
    """Holds the base in memory and puts one network after another into it; draws in ``steps`` steps of the sampler."""

    def __init__(self, base: Path, device: str | None, steps: int = STEPS) -> None:
        self.base = load_base(base, tokenizer_dir=demo_base().with_name("tokenizer"))
        self.family = open_family(
            self.base,
            device=choose_device(device),
            max_token_length=75,
            clip_skip=self.base.encoder_layer,
        )
        self.objective = self.family.objective(LossSettings(), self.base.prediction_type or EPSILON.name)
        self.steps = steps

    def draw(
        self,
        prompts: Sequence[str],
        network: Path | None,
        seeds: Sequence[int] | None = None,
        each: Callable[[], object] | None = None,
        in_weights: bool = False,
        strength: float = 1.0,
    ) -> list[Image]:
        """A picture for each prompt and seed (without ``seeds``: 1000, 1001 ...); ``each`` is called after each.

        ``in_weights``: the network's change is added to the weights meanwhile, which draws the same up to rounding and
        is a quarter faster than adapters beside so small layers.
        """
        weights: list[tuple[nn.Parameter, Tensor]] = []
        if network is not None:
            adapters = attach_file(self.family, network, strength).adapters.values()
            if in_weights:
                detach(self.family.parts.values())
                weights = [row for adapter in adapters for row in change_weights(adapter)]
        try:
            rows = [
                Prompt(text=text, width=64, height=64, steps=self.steps, scale=GUIDANCE, seed=seed)
                for text, seed in zip(prompts, seeds or range(1000, 1000 + len(prompts)), strict=True)
            ]
            pictures = []
            # A flow base has a sampler of its own.
            sampler = SAMPLER if SAMPLER in self.objective.samplers else None
            for picture in draw(self.family, self.objective, rows, sampler=sampler, batch_size=20):
                pictures.append(picture)
                if each is not None:
                    each()
            return pictures
        finally:
            detach(self.family.parts.values())
            for parameter, value in weights:
                parameter.data = value


def change_weights(adapter: Adapter) -> list[tuple[nn.Parameter, Tensor]]:
    """Add an adapter's change to the frozen weight and bias; the parameters, and the values that they had."""
    changes = {"weight": adapter.delta_at(adapter.multiplier)}
    if (bias := adapter.bias_delta()) is not None:
        changes["bias"] = bias * adapter.multiplier
    before = []
    for name, change in changes.items():
        parameter = adapter.base.get_parameter(name)
        before.append((parameter, parameter.data))
        parameter.data = parameter.data + change.detach().to(parameter.dtype)
    return before
