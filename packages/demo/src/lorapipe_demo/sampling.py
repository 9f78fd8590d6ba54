"""Draw with the demo base, or one that a network was merged into, with or without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorapipe_demo.recipe import GUIDANCE, SAMPLER, STEPS
from lorapipe_engine.models.bases import demo_base
from lorapipe_engine.models.predictions import EPSILON
from lorapipe_engine.nn.attach import detach
from lorapipe_engine.settings import LossSettings
from lorapipe_engine.train.base.load import load_base
from lorapipe_engine.train.families import open_family
from lorapipe_engine.train.network.apply import attach_file
from lorapipe_engine.train.plan import choose_device
from lorapipe_engine.train.sample.draw import draw
from lorapipe_engine.train.sample.prompts import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image


class Painter:
    """Holds the base in memory and puts one network after another into it."""

    def __init__(self, base: Path, device: str | None) -> None:
        self.base = load_base(base, tokenizer_dir=demo_base().with_name("tokenizer"))
        self.family = open_family(
            self.base,
            device=choose_device(device),
            max_token_length=75,
            clip_skip=self.base.encoder_layer,
        )
        self.objective = self.family.objective(LossSettings(), self.base.prediction_type or EPSILON.name)

    def draw(self, prompts: Sequence[str], network: Path | None, seed: int = 1000) -> list[Image]:
        """A picture for each prompt, from seeds ``seed``, ``seed + 1`` ..."""
        if network is not None:
            attach_file(self.family, network)
        try:
            rows = [
                Prompt(text=text, width=64, height=64, steps=STEPS, scale=GUIDANCE, seed=seed + index)
                for index, text in enumerate(prompts)
            ]
            return list(draw(self.family, self.objective, rows, sampler=SAMPLER, batch_size=20))
        finally:
            detach(self.family.parts.values())
