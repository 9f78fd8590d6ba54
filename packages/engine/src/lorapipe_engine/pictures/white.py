"""Transparency laid on white, a strip at a time: a large picture is not in memory three times for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

STRIP_PIXELS = 4_000_000


def strips(size: tuple[int, int], multiple: int = 1) -> Iterator[tuple[int, int, int, int]]:
    """Boxes of whole rows that cover a picture from the top down, each of about ``STRIP_PIXELS`` pixels.

    The heights of all but the last are multiples of ``multiple``.
    """
    width, height = size
    step = max(1, STRIP_PIXELS // (width * multiple)) * multiple
    for top in range(0, height, step):
        yield 0, top, width, min(top + step, height)


def on_white(picture: Image) -> Image:
    """A picture of mode RGBA as RGB over white."""
    from PIL import Image as Images

    flat = Images.new("RGB", picture.size)
    for box in strips(picture.size):
        layer = picture.crop(box)
        ground = Images.new("RGBA", layer.size, "white")
        flat.paste(Images.alpha_composite(ground, layer).convert("RGB"), box)
    return flat
