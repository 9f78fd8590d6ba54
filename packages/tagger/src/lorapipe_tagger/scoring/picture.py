"""From a picture file to what a tagger looks at: decoded, upright, on white, squared and scaled.

The default geometry is that of the WD taggers' author: alpha over white, a white square around the picture, Pillow's
bicubic filter. EXIF rotation and 16-bit greys, which most tools get wrong, come first. Large files are read with
little memory: JPEGs are decoded at a fraction of their size where that keeps 2 pixels for each one needed, and the
square is never built in full.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.errors import InputError, MissingExtra
from lorapipe_engine.pictures.bounds import MOST_PIXELS, PictureBound, PixelBound
from lorapipe_engine.pictures.opening import GATE, exif_of, open_picture
from lorapipe_engine.pictures.white import on_white
from lorapipe_tagger.settings import Geometry, Resampling

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]

# Part of the score cache's key: raise it when the same file would give other pixels.
VERSION = 1
WHITE = (255, 255, 255)
_ORIENTATION = 0x0112
# Of a JPEG decoded at a fraction of its size at least this many pixels stay for each one of the result.
_DRAFT_MARGIN = 2
_LARGEST_CANVAS = 16_000_000
_BICUBIC_SUPPORT = 2.0


class PictureError(InputError):
    """A picture that cannot be read; the message says why, without the path."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What a model wants: ``size`` x ``size`` pixels, a colour for the ``padding`` (RGB, 0..255), and the filter.

    ``geometry``: padded to a square, both sides scaled apart (``squash``), or what hangs over a square cut off
    (``crop``). ``channels`` is their order.
    """

    size: int = 448
    padding: tuple[int, int, int] = WHITE
    geometry: Geometry = "pad"
    resampling: Resampling = "bicubic"
    channels: Literal["BGR", "RGB"] = "BGR"

    @property
    def key(self) -> str:
        """A text that differs wherever pixels do."""
        padding = "pad{:02x}{:02x}{:02x}".format(*self.padding)
        shape = padding if self.geometry == "pad" else self.geometry
        return f"{VERSION}-{self.size}-{shape}-{self.resampling}"


class Picture(NamedTuple):
    """Upright width and height, whether any pixel is transparent, and pixels (S, S, 3) for each preparation."""

    size: tuple[int, int]
    transparent: bool
    pixels: tuple[Pixels, ...]


def read_picture(
    source: Path | bytes,
    preparations: Sequence[Preparation],
    *,
    max_pixels: int = MOST_PIXELS,
) -> Picture:
    """Decode a picture (of an animation its first frame) and prepare it. Raises PictureError.

    Pictures above Pillow's own limit need :func:`without_pillow_limit` around all of the work.
    """
    try:
        with open_picture(source, most_pixels=max_pixels) as image:
            size = image.size
            turned = _shrink_on_load(image, max(p.size for p in preparations))
            with GATE.room(image.size[0] * image.size[1]):
                image.load()
                if turned is None:
                    turned = _orientation(image)
                flat, transparent = flatten(image)
                if turned > 1:
                    flat = _turn(flat, turned)
                    size = size[::-1] if turned >= 5 else size
                return Picture(size, transparent, tuple(prepare(flat, p) for p in preparations))
    except (PictureError, MissingExtra):
        raise
    except MemoryError as error:
        raise PictureError("not enough memory to decode it") from error
    except Exception as error:  # decoders of broken files raise whatever they stumble over
        raise PictureError(why_unreadable(source, error)) from error


@contextmanager
def without_pillow_limit() -> Iterator[None]:
    """Lift Pillow's bound of pixels, which is one for the whole process, in favour of ``max_pixels``."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def why_unreadable(source: Path | bytes, error: Exception) -> str:
    """One line on why a file is no picture."""
    from PIL import UnidentifiedImageError

    if isinstance(error, PixelBound):
        return f"{error} (see --max-pixels)"
    if isinstance(error, PictureBound):
        return str(error)
    if isinstance(error, UnidentifiedImageError):
        empty = not source if isinstance(source, bytes) else source.stat().st_size == 0
        return "empty file" if empty else f"not a picture that can be read{_plugin_hint(source)}"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    text = " ".join(str(error).split()) or type(error).__name__
    return f"broken picture ({text})"


def _plugin_hint(source: Path | bytes) -> str:
    head = source[:32] if isinstance(source, bytes) else _head(source)
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return ": JPEG XL needs pip install pillow-jxl-plugin"
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftyphevc"):
        return ": HEIC needs pip install pillow-heif"
    return ""


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)


# -------------------------------------------------------------------------------- decoding


def _shrink_on_load(image: Image, size: int) -> int | None:
    """Let a large JPEG be decoded at a half, a quarter or an eighth; its orientation, None if not looked for."""
    if image.format not in ("JPEG", "MPO"):
        return None
    longest, wanted = max(image.size), size * _DRAFT_MARGIN
    if longest >= 2 * wanted:
        image.draft(None, tuple(max(1, math.ceil(side * wanted / longest)) for side in image.size))  # type: ignore[arg-type]
    return _orientation(image)


def _orientation(image: Image) -> int:
    try:
        orientation = exif_of(image).get(_ORIENTATION, 1)
    except PictureBound:
        raise
    except Exception:  # of a damaged EXIF block
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _turn(image: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    ways = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return image.transpose(ways[orientation])


def flatten(image: Image) -> tuple[Image, bool]:
    """A picture in RGB, transparent parts over white; and whether there were any."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layered = image.convert("RGBA")
        lowest, _ = layered.getchannel("A").getextrema()
        if isinstance(lowest, int | float) and lowest < 255:
            return on_white(layered), True
        return layered.convert("RGB"), False
    return (image if image.mode == "RGB" else image.convert("RGB")), False


def _eight_bits(image: Image) -> Image:
    """Grey of 16 bits (or more, or floating) as 8 bits; Pillow itself would cut everything above 255 to white."""
    from PIL import Image as Images

    values = np.asarray(image).astype(np.float32)
    if image.mode == "F":
        values = values * 255 if values.size and float(values.max()) <= 1 else values
    else:
        values /= 257
    return Images.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))


# -------------------------------------------------------------------------------- geometry


def prepare(image: Image, preparation: Preparation) -> Pixels:
    """Pixels (S, S, 3) of a picture in RGB, in the preparation's order of channels."""
    from PIL import ImageOps
    from PIL.Image import Resampling as Filter

    side = preparation.size
    if preparation.geometry == "crop":
        square = ImageOps.fit(image, (side, side), Filter.BICUBIC)
    elif preparation.geometry == "squash":
        square = image.resize((side, side), Filter.BICUBIC)
    elif preparation.resampling == "kohya":
        square = _square_area(image, preparation)
    else:
        square = _square_bicubic(image, preparation)
    # Pillow turns the channels round much faster than numpy.
    return np.frombuffer(square.tobytes("raw", preparation.channels), np.uint8).reshape(side, side, 3)


def _square_bicubic(image: Image, preparation: Preparation) -> Image:
    """What padding to a square and scaling by Pillow's bicubic filter gives, bit for bit, for less work and memory.

    Pillow scales along x, then along y, with 8 bits between. In the first pass rows of padding stay what they are,
    so a wide picture is padded after it. Of a tall one only those columns are made that the picture has a part in.
    """
    from PIL import Image as Images
    from PIL.Image import Resampling as Filter

    side, fill = preparation.size, preparation.padding
    width, height = image.size
    if width >= height:
        canvas = Images.new("RGB", (side, width), fill)
        canvas.paste(image.resize((side, height), Filter.BICUBIC), (0, (width - height) // 2))
        return canvas.resize((side, side), Filter.BICUBIC)
    padded = _Padded(image, side, fill)
    result = Images.new("RGB", (side, side), fill)
    for first, last in padded.ranges():
        columns = padded.columns(first, last)
        result.paste(columns.resize((last - first, side), Filter.BICUBIC), (first, 0))
    return result


class _Padded:
    """A tall picture in the middle of a square that is only made in strips."""

    def __init__(self, image: Image, side: int, fill: tuple[int, int, int]) -> None:
        self._image, self._side, self._fill = image, side, fill
        self._offset = (image.height - image.width) // 2
        self._scale = image.height / side
        self._reach = _BICUBIC_SUPPORT * max(self._scale, 1.0)

    def ranges(self) -> list[tuple[int, int]]:
        """Ranges of the result's columns: those made of picture and padding, of picture alone, and of both again."""
        left, right = self._offset, self._offset + self._image.width
        first = max(0, math.floor((left - self._reach) / self._scale - 0.5))
        last = min(self._side, math.ceil((right + self._reach) / self._scale + 0.5))
        inner = math.ceil((left + self._reach) / self._scale + 0.5)
        outer = math.floor((right - self._reach) / self._scale - 0.5)
        if inner >= outer:
            return [(first, last)]
        return [(first, inner), (inner, outer), (outer, last)]

    def columns(self, first: int, last: int) -> Image:
        """Columns ``first`` to ``last`` of the result, in the picture's height."""
        from PIL import Image as Images
        from PIL.Image import Resampling as Filter

        image, scale, height = self._image, self._scale, self._image.height
        start = math.floor((first + 0.5) * scale - self._reach) - 1
        stop = math.ceil((last - 0.5) * scale + self._reach) + 1
        if start >= self._offset and stop <= self._offset + image.width:
            start, strip = self._offset, image
        else:
            start, stop = max(0, start), min(height, stop)
            strip = Images.new("RGB", (stop - start, height), self._fill)
            strip.paste(image, (self._offset - start, 0))
        box = (first * scale - start, 0.0, min(last * scale - start, float(strip.width)), float(height))
        return strip.resize((last - first, height), Filter.BICUBIC, box=box)


def _square_area(image: Image, preparation: Preparation) -> Image:
    """As sd-scripts does it: OpenCV's area filter for smaller, Pillow's Lanczos for larger pictures."""
    from PIL import Image as Images
    from PIL.Image import Resampling as Filter

    side, fill = preparation.size, preparation.padding
    factor = math.isqrt(max(image.size) ** 2 // _LARGEST_CANVAS)
    if factor > 1:  # a strip, whose square would not fit into memory
        image = image.reduce(factor)
    width, height = image.size
    square = max(width, height)
    canvas = Images.new("RGB", (square, square), fill)
    canvas.paste(image, ((square - width) // 2, (square - height) // 2))
    if square <= side:
        return canvas.resize((side, side), Filter.LANCZOS)
    try:
        import cv2
    except ImportError as error:
        raise MissingExtra(
            "--preprocess kohya needs OpenCV: pip install opencv-python-headless, or leave it out"
        ) from error
    area = cv2.resize(np.asarray(canvas), (side, side), interpolation=cv2.INTER_AREA)
    return Images.fromarray(np.asarray(area, dtype=np.uint8))
