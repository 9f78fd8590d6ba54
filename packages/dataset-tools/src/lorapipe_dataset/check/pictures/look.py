"""What a picture's pixels tell. Each file is decoded once, JPEGs at the smallest size that is enough."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from lorapipe_dataset.check.pictures.dataset import Look, Picture
from lorapipe_dataset.check.pictures.hashing import hash_picture, small_of
from lorapipe_dataset.check.pictures.measures import measure
from lorapipe_dataset.check.pictures.scan import WORKERS
from lorapipe_engine.pictures.bounds import PictureBound
from lorapipe_engine.pictures.opening import GATE, exif_of, frames_of, open_picture
from lorapipe_engine.pictures.white import on_white, strips

if TYPE_CHECKING:
    from PIL.Image import Image

WORK_SIDE = 512  # pixels of the shorter side that the measures are made at
AHEAD = 4 * WORKERS
_TURN = 0x0112
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, KeyError, IndexError, struct.error)


def look_at_all(pictures: Iterable[Picture], thumbnail: int | None) -> Iterator[Picture]:
    """Fill each picture's ``look`` and yield it, in order; pictures are decoded on all cores.

    ``thumbnail``: longest side of the JPEG that is kept of each, or None.
    """
    waiting: list[tuple[Picture, Future[Look]]] = []
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for picture in pictures:
                waiting.append((picture, pool.submit(look_at, picture.path, thumbnail)))
                if len(waiting) >= AHEAD:
                    yield _finish(*waiting.pop(0))
            while waiting:
                yield _finish(*waiting.pop(0))
        finally:
            pool.shutdown(cancel_futures=True)


def _finish(picture: Picture, future: Future[Look]) -> Picture:
    picture.look = future.result()
    return picture


def look_at(path: Path, thumbnail: int | None = None) -> Look:
    """Decode a picture and measure it. Never raises for a file that is broken."""
    # What a broken file makes Pillow raise has no common base but this.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_picture(path) as picture:
                return _look(picture, thumbnail)
    except PictureBound as error:
        return Look(problem=str(error), too_large=True)
    except MemoryError:
        return Look(problem="not enough memory to decode it", too_large=True)
    except _BROKEN as error:
        return Look(problem=_reason(path, error))


def _reason(path: Path, error: Exception) -> str:
    try:
        if path.stat().st_size == 0:
            return "empty file"
    except OSError as missing:
        return f"cannot be read ({missing.strerror})"
    text = str(error)
    if "truncated" in text or "Truncated" in text:
        return "cut short"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    return "its pixels cannot be decoded" if not text.startswith("cannot identify") else "not a picture"


def _look(picture: Image, thumbnail: int | None) -> Look:
    facts = {
        "format": picture.format or "",
        "mode": picture.mode,
        "frames": frames_of(picture),
        "quality": _jpeg_quality(getattr(picture, "quantization", None)),
    }
    if picture.format == "JPEG":
        picture.draft(picture.mode, (WORK_SIDE, WORK_SIDE))
    with GATE.room(picture.width * picture.height):
        picture.load()
        turned = int(exif_of(picture).get(_TURN, 1) or 1)
        flat, transparent = _as_trained(picture)
    return Look(
        **facts,  # type: ignore[arg-type]
        turned=turned,
        transparent=transparent,
        hashes=hash_picture(flat),
        small=small_of(flat),
        measures=measure(flat),
        thumbnail=_thumbnail(flat, thumbnail) if thumbnail else None,
    )


def thumbnail_of(data: bytes, side: int) -> bytes | None:
    """A JPEG of a picture's bytes whose longer side has ``side`` pixels at most; None for what is no picture."""
    # What a broken file makes Pillow raise has no common base but this.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_picture(data) as picture:
                if picture.format == "JPEG":
                    picture.draft(picture.mode, (side, side))
                with GATE.room(picture.width * picture.height):
                    picture.load()
                    return _thumbnail(_as_trained(picture)[0], side)
    except (MemoryError, *_BROKEN):
        return None


def flat_picture(path: Path) -> Image:
    """A readable picture upright, small, in RGB on white."""
    with open_picture(path) as picture, GATE.room(picture.width * picture.height):
        picture.load()
        return _as_trained(picture)[0]


def _as_trained(picture: Image) -> tuple[Image, bool]:
    """The picture upright, small, in RGB on white; and whether anything in it was transparent.

    Made of strips, since a palette of a byte for each pixel becomes four times as much.
    """
    from PIL import Image, ImageOps

    # Box averages of whole pixels; a fraction would cost more than it tells.
    factor = max(1, min(picture.size) // WORK_SIDE)
    boxes = list(strips(picture.size, factor))
    if len(boxes) == 1:
        small, transparent = _reduced(picture, factor, picture)
    else:
        small, transparent = Image.new("RGB", tuple(-(-side // factor) for side in picture.size)), False  # type: ignore[arg-type]
        for box in boxes:
            strip, clear = _reduced(picture.crop(box), factor, picture)
            small.paste(strip, (0, box[1] // factor))
            transparent |= clear
        small.info = picture.info
    return ImageOps.exif_transpose(small), transparent


def _reduced(strip: Image, factor: int, whole: Image) -> tuple[Image, bool]:
    """A strip of a picture ``whole`` on white, a pixel for each ``factor`` x ``factor``; whether it was transparent."""
    has_alpha = "A" in whole.getbands() or "transparency" in whole.info
    if strip.mode == "P" or (has_alpha and strip.mode not in ("RGBA", "LA")):
        strip = strip.convert("RGBA" if has_alpha else "RGB")
    elif strip.mode.startswith("I;16") or strip.mode in ("I", "F"):
        strip = _from_deep(strip, whole)
    transparent = bool(has_alpha and strip.getchannel("A").getextrema()[0] < 255)  # type: ignore[operator]
    if transparent:
        strip = on_white(strip.convert("RGBA"))
    strip = strip.convert("RGB") if strip.mode != "RGB" else strip
    return (strip.reduce(factor) if factor > 1 else strip), transparent


def _from_deep(strip: Image, whole: Image) -> Image:
    """Grey of 16 bits or more, scaled to 8: Pillow's own conversion cuts at 255."""
    import numpy as np
    from PIL import Image

    values = np.asarray(strip, dtype=np.float32)
    top = 65535.0 if whole.getextrema()[1] > 255 else 255.0  # type: ignore[operator]
    return Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8))


def _thumbnail(picture: Image, side: int) -> bytes:
    from PIL import Image

    width, height = picture.size
    scale = min(1.0, side / max(width, height))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0) if scale < 1 else picture
    file = BytesIO()
    small.save(file, "JPEG", quality=72)
    return file.getvalue()


_LUMA_50 = 3688  # sum of the brightness table that a quality of 50 has (ITU T.81, table K.1)


def _jpeg_quality(tables: dict[int, list[int]] | None) -> int | None:
    """The quality (1 to 100) at which the usual encoder writes such a table, by its mean scale; None without one."""
    if not tables or 0 not in tables:
        return None
    scale = 100 * sum(tables[0]) / _LUMA_50
    quality = (200 - scale) / 2 if scale <= 100 else 5000 / scale
    return max(1, min(100, round(quality)))
