"""Pictures on disk: which files they are, how large, and the folders ``N_concept`` they lie in."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorapipe_engine.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"})
_REPEATS = re.compile(r"(\d+)_(.*)", re.DOTALL)
_TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class RepeatFolder:
    """A folder ``N_concept``: its pictures come N times an epoch."""

    path: Path
    repeats: int
    concept: str


def find_images(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The pictures of a folder by suffix (any case), sorted by name. Hidden files are left out.

    Raises InputError if the folder cannot be read.
    """
    check_folder(folder)
    found = _walk(folder) if recursive else _files(folder)
    return sorted(
        path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def check_folder(folder: Path) -> None:
    """Raise InputError, saying what is there instead, unless ``folder`` is a folder."""
    if folder.is_dir():
        return
    what = "is a file, not a folder" if folder.exists() else "no such folder"
    raise InputError(f"{folder}: {what}")


def _files(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            yield from (Path(entry.path) for entry in entries if entry.is_file())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error


def _walk(folder: Path) -> Iterator[Path]:
    # Links to folders are not followed, so a loop of them cannot trap the walk.
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def repeat_folders(root: Path) -> list[RepeatFolder]:
    """The folders ``N_concept`` in ``root``, sorted by name; ``root`` itself where it is one and holds pictures.

    Raises InputError where there is none, saying which folders to rename.
    """
    check_folder(root)
    found = [
        folder for path in sorted(root.iterdir()) if path.is_dir() and (folder := as_repeat_folder(path))
    ]
    if found:
        return found
    itself = as_repeat_folder(root.resolve())
    if itself and find_images(root):
        return [RepeatFolder(root, itself.repeats, itself.concept)]
    raise InputError(f"{root}: no folder named N_concept in it; {_what_to_rename(root)}")


def as_repeat_folder(path: Path) -> RepeatFolder | None:
    """Read a folder's name; None where it is not of the form N_concept with N of 1 or more."""
    match = _REPEATS.fullmatch(path.name)
    if not match or int(match.group(1)) < 1:
        return None
    return RepeatFolder(path, int(match.group(1)), match.group(2))


def _what_to_rename(root: Path) -> str:
    others = [path.name for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if others:
        return f"rename '{others[0]}' to '10_{others[0]}' (10 is how often its pictures come in an epoch)"
    if find_images(root):
        return f"put its pictures into a folder such as '10_{root.resolve().name}' inside it"
    return "it is empty; put pictures into a folder such as '10_concept' inside it"


def image_size(path: Path) -> tuple[int, int]:
    """Width and height as shown, so with the EXIF rotation applied; reads the header only.

    Raises InputError for a file that is no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(0x0112) in _TURNED
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = (
            "empty file" if path.is_file() and path.stat().st_size == 0 else "not a picture that can be read"
        )
        raise InputError(f"{path}: {reason}; mend it or take it out") from error
    return (height, width) if turned else (width, height)
