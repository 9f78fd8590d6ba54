"""The one place where Pillow opens a picture: a list of formats, and bounds on what a file may ask for.

Without a list Pillow tries every reader that it has, and the one for PostScript runs a program over the file.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorapipe_engine.pictures.bounds import (
    MOST_PIXELS,
    PixelBound,
    check_exif,
    check_outline,
    check_pixels,
)

if TYPE_CHECKING:
    from PIL.Image import Image

# By content, whatever a file is called; JXL and HEIF where the user has installed and imported their plugins. TGA is
# last, because it has no mark of its own.
FORMATS = (
    "PNG",
    "JPEG",
    "WEBP",
    "BMP",
    "DIB",
    "GIF",
    "TIFF",
    "AVIF",
    "JXL",
    "HEIF",
    "PPM",
    "DDS",
    "JPEG2000",
    "TGA",
)
COUNTED = frozenset({"PNG", "WEBP", "AVIF"})  # formats whose headers say how many frames there are
IN_FLIGHT = 32_000_000  # pixels that all threads may hold decoded at once
_RAW_EXIF = "Raw profile type exif"


class PixelGate:
    """Bounds the pixels that all threads hold decoded at once; a picture larger than that has the room alone."""

    def __init__(self, pixels: int = IN_FLIGHT) -> None:
        self._free = self._all = pixels
        self._changed = threading.Condition()

    @contextmanager
    def room(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for so many pixels, and hold it."""
        wanted = min(pixels, self._all)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._free += wanted
                self._changed.notify_all()


# One budget for the process, whichever of its threads decode.
GATE = PixelGate()


@contextmanager
def open_picture(source: Path | bytes, *, most_pixels: int = MOST_PIXELS) -> Iterator[Image]:
    """A picture whose header is read and whose pixels are not: at its first frame, of a known format, within bounds.

    Raises PictureBound (a ValueError) for one that is beyond a bound, PIL.UnidentifiedImageError (an OSError) for
    what is no picture of a known format, and whatever else Pillow raises for a broken one. Whoever decodes it holds
    ``GATE.room(width * height)`` as long as pixels are in memory.
    """
    if isinstance(source, bytes):
        check_outline(BytesIO(source))
    else:
        # Without a buffer, which would be filled anew at every step from one part to the next.
        with source.open("rb", buffering=0) as file:
            check_outline(file)
    with _open(source) as picture:
        check_pixels(picture.size, most_pixels)
        yield picture


def _open(source: Path | bytes) -> Image:
    from PIL import Image, UnidentifiedImageError

    _let_large_pass()
    Image.preinit()
    try:
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_formats())
    except Image.DecompressionBombError as error:
        raise PixelBound(f"more than {MOST_PIXELS / 1e6:,.0f} million pixels") from error
    except UnidentifiedImageError:
        # Most of Pillow's readers are imported when one is needed.
        if not Image.init():
            raise
    return _open(source)


def _formats() -> list[str]:
    from PIL import Image

    return [name for name in FORMATS if name in Image.OPEN]


@cache
def _let_large_pass() -> None:
    """Silence Pillow's warning at half of the bound: the bound itself is what is told."""
    from PIL import Image

    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def exif_of(picture: Image, *, late: bool = True) -> Any:
    """The EXIF notes of a picture (``PIL.Image.Exif``), none where there are none.

    Of a PNG, Pillow decodes the pixels to see what stands behind them, but not with ``late`` false. Raises
    PictureBound for notes that name more than they hold, and what Pillow raises for a broken picture.
    """
    from PIL.Image import Image as Picture

    info = picture.info
    if late and picture.format == "PNG" and "exif" not in info and _RAW_EXIF not in info:
        picture.load()
        info = picture.info
    block = info.get("exif")
    if isinstance(block, bytes):
        check_exif(block)
    elif isinstance(raw := info.get(_RAW_EXIF), str):
        # Three lines, of which the last are hexadecimal digits, as ImageMagick writes them.
        digits = "".join(raw.split("\n")[3:])
        check_exif(bytes.fromhex(digits) if _is_hex(digits) else b"")
    return Picture.getexif(picture) if picture.format == "PNG" and not late else picture.getexif()


def _is_hex(digits: str) -> bool:
    try:
        bytes.fromhex(digits)
    except ValueError:
        return False
    return True


def turn_upright(picture: Image) -> Image:
    """A picture with its EXIF rotation applied; decoded. Raises as :func:`exif_of`."""
    from PIL import ImageOps

    exif_of(picture)
    return ImageOps.exif_transpose(picture)


def frames_of(picture: Image) -> int | None:
    """How many frames a picture has; None for more than one that would have to be visited to be counted."""
    if picture.format in COUNTED:
        return int(getattr(picture, "n_frames", 1))
    if picture.format in ("GIF", "TIFF"):
        return None if getattr(picture, "is_animated", False) else 1
    # Such as the pictures of a JPEG of several, which its header counts.
    return int(getattr(picture, "n_frames", 1))
