"""Ranges of the numbers of a picture."""

from __future__ import annotations

import re

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.sampling.noise.samplers import MOST_STEPS
from lorapipe_engine.sampling.shelf import MOST_STRENGTH

MOST_SIDE = 8192  # pixels
STRIDE = 8  # pixels of a latent's element
# What a number may be, ends included.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (-(1 << 63), (1 << 64) - 1),
    "steps": (1, MOST_STEPS),
    "cfg": (-1000.0, 1000.0),
    "eta": (0.0, 10.0),
    "clip skip": (1, 12),
    **dict.fromkeys(("weight", "unet", "te"), (-MOST_STRENGTH, MOST_STRENGTH)),
}
_SIZE = re.compile(r"(\d{1,6})\s*[xX×]\s*(\d{1,6})")


def check_number(name: str, value: float, place: str) -> None:
    """Raise ConfigError for a number that no picture can have."""
    low, high = RANGES[name]
    if not low <= value <= high:
        raise ConfigError(f"{place}: {name} {value:g} is not from {low:g} to {high:g}")


def read_size(text: str, place: str) -> tuple[int, int]:
    """Width and height in pixels of ``512x768``. Raises ConfigError, with the nearest multiples of 8."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{place}: '{text}' is no size; write it as 512x768")
    width, height = int(match[1]), int(match[2])
    if not STRIDE <= min(width, height) <= max(width, height) <= MOST_SIDE:
        raise ConfigError(f"{place}: {text}: sides are from {STRIDE} to {MOST_SIDE} px")
    if width % STRIDE or height % STRIDE:
        near = f"{width // STRIDE * STRIDE}x{height // STRIDE * STRIDE}"
        raise ConfigError(f"{place}: {text}: sides are multiples of {STRIDE}, as {near}")
    return width, height
