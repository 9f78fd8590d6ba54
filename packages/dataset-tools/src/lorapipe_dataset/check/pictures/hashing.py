"""Fingerprints by which copies of a picture are found: 64 bits of gradients (dHash), 64 of the DCT (pHash)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 32
PATCH = 16
SMALL = 128  # longest side of the small picture in which parts are looked for


@dataclass(frozen=True)
class Hashes:
    """``gradient`` and ``frequency`` are the hashes; ``patch`` is the picture at 16x16 RGB (768 bytes), to verify."""

    gradient: int
    frequency: int
    patch: bytes


@dataclass(frozen=True)
class Small:
    """A picture in grey, ``rows`` of bytes one after another, at most :data:`SMALL` pixels a side."""

    width: int
    height: int
    rows: bytes


def small_of(picture: Image) -> Small:
    """The small picture of an RGB one."""
    from PIL import Image

    scale = min(1.0, SMALL / max(picture.size))
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    grey = picture.resize(size, Image.Resampling.BOX, reducing_gap=1.0).convert("L")
    return Small(*size, grey.tobytes())


def hash_picture(picture: Image) -> Hashes:
    """Fingerprints of an RGB picture.

    dHash: 9x8 grey, each pixel against its right neighbour. pHash: the lowest 8x8 of the 2-D DCT of 32x32 grey,
    each against the median of the 63 without the mean.
    """
    import numpy as np
    from PIL import Image

    small = picture.resize((4 * SIDE, 4 * SIDE), Image.Resampling.BOX, reducing_gap=1.0).convert("L")
    grey = small.reduce(4)
    rows = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    waves = _dct() @ np.asarray(grey, dtype=np.float32) @ _dct().T
    low = waves[:8, :8].ravel()
    bits = low > np.median(low[1:])
    bits[0] = False  # the mean says how bright, not what
    patch = picture.resize((PATCH, PATCH), Image.Resampling.BOX, reducing_gap=1.0)
    return Hashes(_pack(rows[:, 1:] > rows[:, :-1]), _pack(bits), patch.tobytes())


@cache
def _dct() -> Any:
    """The first eight rows of the orthonormal DCT-II of 32 points, (8, 32)."""
    import numpy as np

    k, n = np.arange(8)[:, None], np.arange(SIDE)[None, :]
    rows = np.cos(math.pi * k * (2 * n + 1) / (2 * SIDE)) * math.sqrt(2 / SIDE)
    rows[0] /= math.sqrt(2)
    return rows.astype(np.float32)


def _pack(bits: Any) -> int:
    import numpy as np

    return int.from_bytes(np.packbits(bits).tobytes(), "big")
