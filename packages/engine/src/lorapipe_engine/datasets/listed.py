"""The metadata file (``in_json``, ``metadata_file``): captions and tags of many pictures in one JSON file.

It is a table of pictures, ``{"a.png": {"caption": "...", "tags": "..."}}``, or lines of JSON that each name theirs as
``image_path``. A picture is named by its path, from its folder or whole, with or without its suffix.

Besides caption and tags sd-scripts' tools write what is read from the pictures here: sizes, and where latents are kept.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorapipe_engine.command.documents import MOST_JSON, parse_json, read_text
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.pictures.caption_files import PictureNames
from lorapipe_engine.pictures.captions import caption_lines, join_tags
from lorapipe_engine.pictures.layout import find_images

_TEXTS = ("caption", "tags")
_BESIDE = frozenset(
    {
        "image_path",
        "train_resolution",
        "image_size",
        "width",
        "height",
        "npz_path",
        "latents_npz",
        "latents_path",
    }
)


@dataclass(frozen=True)
class Listed:
    """The captions of a folder's pictures, sorted by path; how many pictures that the file names are not there; and how
    many of its rows have each key that nothing reads, the most first."""

    captions: Mapping[Path, str]
    missing: int
    unread: Mapping[str, int]


def read_listed(file: Path, folder: Path, separator: str = ",", option: str = "in_json") -> Listed:
    """What a file says of a folder's pictures.

    A caption with tags becomes one text, with ``separator`` between; of several lines all are there. ``option`` is
    named in errors. Raises ConfigError for a file of another form, InputError where none of its pictures is there.
    """
    images = find_images(folder, recursive=True)
    pictures = PictureNames({path.relative_to(folder).as_posix(): path for path in images})
    captions: dict[Path, str] = {}
    unread = Counter[str]()
    missing = 0
    for place, name, row in _rows(file, folder, option):
        unread.update(word for word in row if word not in _TEXTS and word not in _BESIDE)
        picture = pictures.of(_key(name, folder))
        if picture is None:
            missing += 1
            continue
        if picture in captions:
            raise ConfigError(f"{place}: {name} is named twice")
        captions[picture] = _text(row, separator, place)
    if not captions:
        raise InputError(
            f"{file}: none of its {missing} pictures is in {folder}; name the folder that its paths begin in"
        )
    return Listed(dict(sorted(captions.items())), missing, dict(unread.most_common()))


def _rows(file: Path, folder: Path, option: str) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """The place, the picture's name and the entry of each picture."""
    text = read_text(file, MOST_JSON, option)
    if file.suffix.lower() == ".csv":
        raise ConfigError(f"{option}: {file}: is no JSON; {_conversion(file, folder)}")
    if file.suffix.lower() == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):  # other line ends may stand in a caption
            if line.strip():
                place = f"{file}:{number}"
                row = _table(parse_json(line, place), place)
                name = row.get("image_path")
                if not isinstance(name, str):
                    raise ConfigError(f"{place}: {_no_path(row, file, folder)}")
                yield place, name, row
        return
    for name, row in _table(parse_json(text, str(file)), str(file)).items():
        yield f"{file}: {name}", name, _table(row, f"{file}: {name}")


def _no_path(row: Mapping[str, Any], file: Path, folder: Path) -> str:
    """Why a line names no picture, with the way to have it read where it is one of a form that lora-clean reads."""
    if isinstance(row.get("file_name"), str):
        return f"is in Hugging Face's form (file_name), not in sd-scripts'; {_conversion(file, folder)}"
    if isinstance(row.get("path"), str):
        words = ["lora-clean", "-", "--to", "kohya", "-o", str(file.with_suffix(".json"))]
        command = f"{shlex.join(words)} < {shlex.quote(str(file))}"
        return f"is a record (path), not in sd-scripts' form; give what this writes: {command}"
    return "image_path: missing, the path of the picture"


def _conversion(file: Path, folder: Path) -> str:
    """The command that makes a file of this form; names in such files begin where they lie."""
    inside = folder / file.name
    first = "" if file.parent.resolve() == folder.resolve() else f"put it into {folder} and "
    words = ["lora-clean", str(inside), "--to", "kohya", "-o", str(inside.with_suffix(".json"))]
    return f"{first}give what this writes: {shlex.join(words)}"


def _table(value: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{place}: must be a table of caption and tags")
    return value


def _key(name: str, folder: Path) -> str:
    """A picture's name as it begins in the folder; one that lies elsewhere keeps its whole path."""
    path = Path(name.replace("\\", "/"))
    if path.is_absolute():
        try:
            path = path.relative_to(folder.absolute())
        except ValueError:
            return name
    return path.as_posix()


def _text(row: Mapping[str, Any], separator: str, place: str) -> str:
    parts = []
    for key in _TEXTS:
        value = row.get(key)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            value = join_tags(value, separator)
        if value is not None and not isinstance(value, str):
            raise ConfigError(f"{place}: {key}: expected a text")
        if value:
            parts.append("\n".join(caption_lines(value)))
    return join_tags(parts, separator)
