"""A picture as it is sent."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

from lorapipe_engine.pictures.bounds import PictureBound
from lorapipe_engine.pictures.opening import GATE, open_picture, turn_upright
from lorapipe_tagger.scoring.picture import flatten, why_unreadable
from lorapipe_tagger.sentences.failures import NoSentence

LONGEST_SIDE = 1024
_QUALITY = 90


def picture_address(path: Path, *, max_pixels: int) -> str:
    """A picture as a data address: upright, transparency on white, at most 1,024 px long, JPEG. Raises NoSentence."""
    try:
        with open_picture(path, most_pixels=max_pixels) as image:
            with GATE.room(image.width * image.height):
                image.draft("RGB", (2 * LONGEST_SIDE, 2 * LONGEST_SIDE))
                flat, _ = flatten(turn_upright(image))
                flat.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
            data = BytesIO()
            flat.save(data, "JPEG", quality=_QUALITY)
    except (PictureBound, MemoryError, Exception) as error:  # decoders raise whatever they stumble over
        raise NoSentence(why_unreadable(path, error)) from error
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
