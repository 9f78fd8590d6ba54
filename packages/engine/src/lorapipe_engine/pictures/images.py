"""Pictures on disk: which files they are, how large, and the folders ``N_concept`` they lie in."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorapipe_engine.command.records import check_folder, find_files
from lorapipe_engine.errors import InputError
from lorapipe_engine.pictures.bounds import PictureBound
from lorapipe_engine.pictures.image_headers import TURNED, header_size
from lorapipe_engine.pictures.opening import GATE, exif_of, open_picture

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"})
MOST_REPEATS = 10_000
_NUMBERED = re.compile(r"(\d+)[\s.-]+(\S.*)", re.DOTALL)
_REPEATS = re.compile(r"(\d+)_(.*)", re.DOTALL)
_ORIENTATION = 0x0112
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257
_PNG_SIGNATURE_BYTES = 8
_PNG_NOTES = frozenset({b"eXIf", b"iTXt", b"tEXt", b"zTXt"})


@dataclass(frozen=True)
class RepeatFolder:
    """A folder ``N_concept``: its pictures come N times an epoch."""

    path: Path
    repeats: int
    concept: str


def find_images(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The pictures of a folder by suffix (any case), sorted by the letters' code points. Hidden files are left out.

    Raises InputError if the folder cannot be read.
    """
    return find_files(folder, IMAGE_SUFFIXES, recursive=recursive)


def repeat_folders(root: Path) -> list[RepeatFolder]:
    """The folders ``N_concept`` in ``root``, sorted by name; ``root`` itself where it is one and holds pictures.

    Raises InputError where there is none, saying which folders to rename.
    """
    check_folder(root)
    inside = _subfolders(root)
    found = [folder for path in inside if (folder := as_repeat_folder(path))]
    if found:
        return found
    itself = as_repeat_folder(root.resolve())
    if itself and find_images(root):
        return [RepeatFolder(root, itself.repeats, itself.concept)]
    raise InputError(f"{root}: no folder named N_concept in it; {_what_to_rename(root, inside)}")


def _subfolders(root: Path) -> list[Path]:
    try:
        return sorted((path for path in root.iterdir() if path.is_dir()), key=lambda path: path.parts)
    except OSError as error:
        raise InputError(f"{root}: cannot be read ({error.strerror})") from error


def as_repeat_folder(path: Path) -> RepeatFolder | None:
    """Read a folder's name; None where it is not of the form N_concept with N of 1 or more.

    Raises InputError for more than ``MOST_REPEATS``: names that begin with a picture's number on some site.
    """
    match = _REPEATS.fullmatch(path.name)
    if not match or int(match.group(1)) < 1:
        return None
    if int(match.group(1)) > MOST_REPEATS:
        raise InputError(
            f"{path}: its name asks for {int(match.group(1)):,} repeats of each picture, more than {MOST_REPEATS:,}; "
            f"rename it to '1_{path.name}', or to the number that is meant"
        )
    return RepeatFolder(path, int(match.group(1)), match.group(2))


def concept_of(name: str) -> str:
    """The concept that a folder's name stands for: what is behind its repeats, all of it where it has none."""
    match = _REPEATS.fullmatch(name)
    return match.group(2) if match and 1 <= int(match.group(1)) <= MOST_REPEATS else name


def _what_to_rename(root: Path, inside: list[Path]) -> str:
    others = [path.name for path in inside if not path.name.startswith(".")]
    if others:
        repeats, name = _with_repeats(others[0])
        return f"rename '{others[0]}' to '{repeats}_{name}' ({repeats} is how often its pictures come in an epoch)"
    if find_images(root):
        return f"put its pictures into a folder such as '10_{root.resolve().name}' inside it"
    return "it is empty; put pictures into a folder such as '10_concept' inside it"


def _with_repeats(name: str) -> tuple[int, str]:
    """Repeats and concept that a folder's name should have: its own number, where it begins with one, or 10."""
    match = _NUMBERED.fullmatch(name)
    if match and 1 <= int(match[1]) <= MOST_REPEATS:
        return int(match[1]), match[2]
    return 10, name


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
