"""How large pictures on disk are, from their headers alone."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from lorapipe_engine.errors import InputError
from lorapipe_engine.pictures.bounds import PictureBound
from lorapipe_engine.pictures.image_headers import TURNED, header_size
from lorapipe_engine.pictures.opening import GATE, exif_of, open_picture

if TYPE_CHECKING:
    from PIL.Image import Image

_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_PNG_SIGNATURE_BYTES = 8
_PNG_NOTES = frozenset({b"eXIf", b"iTXt", b"tEXt", b"zTXt"})


def image_size(path: Path) -> tuple[int, int]:
    """Width and height as shown, so with the EXIF rotation applied; reads the header only.

    Raises InputError for a file that is no picture.
    """
    return header_size(path) or _size_by_pillow(path)


def _size_by_pillow(path: Path) -> tuple[int, int]:
    try:
        with open_picture(path) as picture:
            width, height = _size_in_file(picture)
            turned = _orientation(path, picture) in TURNED
    except (OSError, SyntaxError, ValueError, TypeError, EOFError, struct.error) as error:
        raise InputError(f"{path}: {_why_unreadable(path, error)}; mend it or take it out") from error
    return (height, width) if turned else (width, height)


def _size_in_file(picture: Image) -> tuple[int, int]:
    """Width and height before the rotation: newer Pillows report a TIFF's after it."""
    tags = getattr(picture, "tag_v2", {}) if picture.format == "TIFF" else {}
    width, height = tags.get(_TIFF_WIDTH), tags.get(_TIFF_HEIGHT)
    return (width, height) if isinstance(width, int) and isinstance(height, int) else picture.size


def _orientation(path: Path, picture: Image) -> int | None:
    """The EXIF orientation, or None. Of a PNG, Pillow decodes the pixels to see what stands behind them; that is left
    to those PNGs that have something there.
    """
    if picture.format != "PNG" or not has_late_notes(path):
        exif = exif_of(picture, late=False)
    else:
        with GATE.room(picture.width * picture.height):
            exif = exif_of(picture)
    orientation = exif.get(_ORIENTATION)
    return orientation if isinstance(orientation, int) else None


def has_late_notes(path: Path) -> bool:
    """Whether a PNG has EXIF or text behind its pixels."""
    pixels_seen = False
    # Without a buffer, which would be filled with pixels at every step.
    with path.open("rb", buffering=0) as file:
        file.seek(_PNG_SIGNATURE_BYTES)
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if pixels_seen and kind in _PNG_NOTES:
                return True
            pixels_seen = pixels_seen or kind == b"IDAT"
            file.seek(size + 4, os.SEEK_CUR)
    return False


def _why_unreadable(path: Path, error: Exception) -> str:
    from PIL import Image

    if path.is_file() and path.stat().st_size == 0:
        return "empty file"
    if isinstance(error, PictureBound):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    if path.suffix.lower() not in Image.registered_extensions():
        return f"this Pillow reads no {path.suffix.lower()} files"
    return "not a picture that can be read"
