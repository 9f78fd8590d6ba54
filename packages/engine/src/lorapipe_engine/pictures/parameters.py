"""Parameters in a picture's file, where AUTOMATIC1111 has them: ``parameters`` in a PNG, else EXIF's UserComment."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lorapipe_engine.errors import OutputError
from lorapipe_engine.pictures.images import has_late_notes
from lorapipe_engine.pictures.opening import GATE, exif_of, open_picture

if TYPE_CHECKING:
    from PIL.Image import Image

USER_COMMENT, EXIF = 0x9286, 0x8769
QUALITY = 95  # of JPEG and WebP
MOST_EXIF = 65_000  # bytes; a JPEG has no room for more
_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}


def save_with_parameters(picture: Image, file: BinaryIO, suffix: str, text: str) -> None:
    """Write a picture with its parameters in the format of ``suffix`` (.png, .jpg, .webp).

    Raises OutputError for parameters that a JPEG or WebP has no room for.
    """
    from PIL.Image import Exif
    from PIL.PngImagePlugin import PngInfo

    if suffix == ".png":
        notes = PngInfo()
        notes.add_text("parameters", text)
        picture.save(file, format="PNG", pnginfo=notes)
        return
    comment = b"UNICODE\0" + text.encode("utf-16-be", "surrogatepass")
    if len(comment) > MOST_EXIF:
        raise OutputError(
            f"{len(text):,} letters of parameters have no room in a {suffix}; take --format png"
        )
    exif = Exif()
    exif.get_ifd(EXIF)[USER_COMMENT] = comment
    picture.save(file, format=_FORMATS[suffix], quality=QUALITY, exif=exif)


def read_stored(path: Path) -> str | None:
    """The parameters in a picture's file; None where it has none or is no picture that can be read."""
    try:
        return parameters_of(path)
    except (OSError, SyntaxError, ValueError, TypeError, EOFError):
        return None


def parameters_of(path: Path) -> str | None:
    """The parameters in a picture's file, None where it has none. Raises what Pillow raises for a broken one."""
    with open_picture(path) as picture:
        if picture.format == "PNG" and "parameters" not in picture.info and has_late_notes(path):
            with GATE.room(picture.width * picture.height):
                picture.load()
        text = picture.info.get("parameters")
        if isinstance(text, str):
            return text
        return read_comment(exif_of(picture, late=False).get_ifd(EXIF).get(USER_COMMENT))


def read_comment(data: Any) -> str | None:
    """EXIF's UserComment: eight letters that name the encoding, then text."""
    if isinstance(data, str):
        return data
    if not isinstance(data, bytes) or len(data) <= 8:
        return None
    kind, rest = data[:8], data[8:]
    if not kind.startswith(b"UNICODE"):
        return rest.decode("utf-8", "replace").strip("\0")
    # A1111 writes big endian, others little; the ASCII letters among them tell, whatever the first is.
    is_big = rest[::2].count(0) >= rest[1::2].count(0)
    order = "utf-16-be" if is_big else "utf-16-le"
    return rest.decode(order, "replace").strip("\0")
