"""Draw with the demo base, or one that a network was merged into, with or without a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorapipe_demo.recipe import GUIDANCE, SAMPLER, STEPS
from lorapipe_engine.models.bases import demo_base
from lorapipe_engine.nn.attach import detach
from lorapipe_engine.train.base.load import load_base
from lorapipe_engine.train.families import open_family
from lorapipe_engine.train.network.apply import attach_file
from lorapipe_engine.train.plan import choose_device
from lorapipe_engine.train.sample.draw import draw
from lorapipe_engine.train.sample.prompts import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image


class Painter:
    """Holds the base in memory and puts one network after another into it; draws in ``steps`` steps of the sampler."""

    def __init__(self, base: Path, device: str | None, steps: int = STEPS) -> None:
        self.base = load_base(base, tokenizer_dir=demo_base().with_name("tokenizer"))
        self.family = open_family(self.base, device=choose_device(device), chunks=1)
        self.steps = steps

    def draw(
        self,
        prompts: Sequence[str],
        network: Path | None,
        seeds: Sequence[int] | None = None,
        each: Callable[[], object] | None = None,
    ) -> list[Image]:
        """A picture for each prompt and seed (without ``seeds``: 1000, 1001 ...); ``each`` is called after each."""
        if network is not None:
            attach_file(self.family, network)
        try:
            rows = [
                Prompt(text=text, width=64, height=64, steps=self.steps, scale=GUIDANCE, seed=seed)
                for text, seed in zip(prompts, seeds or range(1000, 1000 + len(prompts)), strict=True)
            ]
            skip = self.base.encoder_layer
            v = self.base.prediction_type == "v_prediction"
            pictures = []
            for picture in draw(
                self.family, rows, v_prediction=v, clip_skip=skip, sampler=SAMPLER, batch_size=20
            ):
                pictures.append(picture)
                if each is not None:
                    each()
            return pictures
        finally:
            detach(self.family.parts.values())
