"""Changes of a picture that are drawn anew for every step: where it is cut, and its colours."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lorapipe_engine.pictures.buckets import Placement

if TYPE_CHECKING:
    from PIL.Image import Image

SHARE = 0.33  # of the pictures whose colours are shifted
HUE = 8 / 180  # furthest shift, as a share of the colour circle
GAMMA = 0.05  # furthest from 1


@dataclass(frozen=True)
class ColourShift:
    """Either the hue is turned by ``hue``, a share of the circle, or brightness v in 0..1 becomes v ** ``gamma``."""

    hue: float = 0.0
    gamma: float = 1.0

    def apply(self, picture: Image) -> Image:
        """The RGB picture with its colours shifted."""
        from PIL import Image

        if self.hue:
            values = np.array(picture.convert("HSV"))
            values[..., 0] += np.uint8(round(self.hue * 256) % 256)  # wraps around, as the circle does
            return Image.frombytes("HSV", picture.size, values.tobytes()).convert("RGB")
        table = [round(255 * (value / 255) ** self.gamma) for value in range(256)]
        return picture.point(table * 3)


def draw_colour(draw: random.Random) -> ColourShift | None:
    """None for two pictures of three; of the others half are turned in hue, half made brighter or darker."""
    if draw.random() >= SHARE:
        return None
    if draw.random() < 0.5:
        return ColourShift(hue=draw.uniform(-HUE, HUE))
    return ColourShift(gamma=draw.uniform(1 - GAMMA, 1 + GAMMA))


def draw_crop(place: Placement, draw: random.Random) -> Placement:
    """The same bucket, cut anywhere in the resized picture."""
    width, height = place.resized
    crop = (draw.randint(0, width - place.bucket[0]), draw.randint(0, height - place.bucket[1]))
    return replace(place, crop=crop)
