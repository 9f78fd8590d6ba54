"""The measure of the demo: a small network that names what a picture shows.

It was trained on drawn pictures, blurred, noisy and passed through the demo's VAE, and is tested on fresh ones. It
knows the two held-out concepts, which the base model has never seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lorapipe_demo.scene import (
    BACKGROUNDS,
    CLOTHES,
    CLOTHES_COLOURS,
    EXPRESSIONS,
    HAIR_COLOURS,
    HEADWEAR,
    KINDS,
    Scene,
)

if TYPE_CHECKING:
    from PIL.Image import Image

NONE = "none"
# What is named, and the possible answers; "none" where a picture has no such thing.
HEADS: dict[str, tuple[str, ...]] = {
    "kind": KINDS,
    "hair_colour": (NONE, *HAIR_COLOURS, "aqua"),
    "hair_style": (NONE, "short", "spiky", "bob", "long", "twintails", "ponytail", "double bun"),
    "clothes": (NONE, *CLOTHES),
    "clothes_colour": (NONE, *CLOTHES_COLOURS),
    "expression": (NONE, *EXPRESSIONS),
    "headwear": (NONE, *HEADWEAR),
    "background": BACKGROUNDS,
    "style": ("plain", "ink"),
    "character": (NONE, "mirelune"),
}
WEIGHTS = Path(__file__).parent / "assets" / "judge.safetensors"


def true_answers(scene: Scene) -> dict[str, str]:
    """What the judge should say of a scene's picture."""
    answers = {name: str(getattr(scene, name, "") or NONE) for name in HEADS if name != "character"}
    is_her = (
        scene.ornament and scene.two_tone and scene.hair_colour == "aqua" and scene.hair_style == "twintails"
    )
    return {**answers, "character": "mirelune" if is_her else NONE}


class JudgeNetwork(nn.Module):
    """Pictures (B, 3, 64, 64) in -1..1 to one row of scores for each head."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 24, 48, 64, 64)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 96), nn.SiLU())
        self.heads = nn.ModuleDict({name: nn.Linear(96, len(answers)) for name, answers in HEADS.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        features = self.body(pixels)
        return {name: head(features) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Judge:
    """Names what pictures show."""

    network: JudgeNetwork

    @classmethod
    def load(cls, path: Path = WEIGHTS) -> Judge:
        """The judge that ships with the demo."""
        from lorapipe_engine.files.tensorfile import open_tensors

        network = JudgeNetwork()
        with open_tensors(path) as file:
            network.load_state_dict({name: torch.from_numpy(file.read(name)) for name in file.tensors})
        return cls(network.eval())

    def look(self, pictures: Sequence[Image]) -> list[dict[str, str]]:
        """The answers for each picture (any size; it is brought to 64 x 64)."""
        return self.look_at(torch.stack([to_pixels(picture) for picture in pictures]))

    @torch.inference_mode()
    def look_at(self, pixels: Tensor) -> list[dict[str, str]]:
        """The answers for pixels (B, 3, 64, 64) in -1..1."""
        scores = self.network(pixels)
        picks = {name: rows.argmax(1).tolist() for name, rows in scores.items()}
        return [{name: HEADS[name][picks[name][row]] for name in HEADS} for row in range(len(pixels))]


def to_pixels(picture: Image) -> Tensor:
    """A picture as (3, 64, 64) in -1..1."""
    import numpy as np

    small = picture.convert("RGB")
    if small.size != (64, 64):
        small = small.resize((64, 64))
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 127.5 - 1
