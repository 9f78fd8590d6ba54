"""Files of many captions: sd-scripts' metadata JSON, and ``metadata.jsonl`` of Hugging Face's image folders."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lorapipe_engine.command.json_text import NoJson, parse_json, twice_named
from lorapipe_engine.command.records import find_files
from lorapipe_engine.errors import InputError
from lorapipe_engine.pictures.caption_files import PictureNames
from lorapipe_engine.pictures.captions import join_tags, split_tags
from lorapipe_engine.pictures.layout import IMAGE_SUFFIXES, OTHER_PICTURES

_KOHYA_FIELDS = ("tags", "caption")
_TEXT_FIELDS = ("text", "caption", "prompt", "tags")
_PICTURES = IMAGE_SUFFIXES | OTHER_PICTURES
_FILE_FIELDS = ("file_name", "file", "path", "image", "filename")
Change = Callable[[str, str], str]


def is_kohya(data: Any) -> bool:
    """Whether JSON is sd-scripts' metadata: an object for each picture, with caption, tags or resolution."""
    return (
        isinstance(data, dict)
        and bool(data)
        and all(
            isinstance(row, dict) and any(name in row for name in (*_KOHYA_FIELDS, "train_resolution"))
            for row in data.values()
        )
    )


def change_kohya(text: str, change: Change, *, sentences: bool) -> str:
    """The document with each caption put through ``change`` (picture, caption). Its other fields stay as they are.

    The field is ``tags``, or ``caption`` where there are none, or with ``sentences``. Raises InputError.
    """
    data = _kohya(text)
    changed = False
    for key, row in data.items():
        name = "caption" if sentences or _words(row, "tags") is None else "tags"
        old = _words(row, name)
        if old is not None:
            new = change(key, old)
            changed |= new != old
            row[name] = row[name] if new == old else split_tags(new) if isinstance(row[name], list) else new
    if not changed:
        return text
    # As sd-scripts writes it; letters that are no ASCII stay letters where they were.
    return json.dumps(data, indent=2, ensure_ascii=text.isascii()) + "\n" * text.endswith("\n")


def _kohya(text: str) -> dict[str, dict[str, Any]]:
    data: dict[str, dict[str, Any]] = parse(text)
    if not is_kohya(data):
        raise InputError(
            "not sd-scripts' metadata: an object for each picture, with caption or tags, is needed"
        )
    if twice := twice_named(text):
        raise InputError(f"{twice} is there twice; only one of both would be left")
    return data


def _words(row: Mapping[str, Any], name: str) -> str | None:
    """The text of a field, of a list of tags as a caption has them; None where there is none."""
    value = row.get(name)
    if isinstance(value, list) and all(isinstance(tag, str) for tag in value):
        return join_tags(value)
    return value if isinstance(value, str) else None


def change_metadata(text: str, change: Change) -> str:
    """``metadata.jsonl`` with each caption put through ``change`` (file_name, caption); other lines stay letter by
    letter. Raises InputError naming the line that is none.
    """
    lines: list[str] = []
    for number, line in enumerate(re.split(r"(?<=\n)", text), 1):
        bare = line.rstrip("\r\n")
        if not bare.strip():
            lines.append(line)
            continue
        row = parse(bare, f"line {number}: ")
        name = caption_field(row) if isinstance(row, dict) else None
        if isinstance(row, dict) and "path" in row:
            raise InputError("these are records; pipe them in: lora-clean - < FILE")
        if name is None or not isinstance(row.get("file_name"), str):
            raise InputError(f"line {number}: no file_name with a text or caption")
        new = change(row["file_name"], row[name])
        if new != row[name]:
            line = json.dumps({**row, name: new}, ensure_ascii=False) + line[len(bare) :]
        lines.append(line)
    return "".join(lines)


def change_csv(text: str, change: Change) -> str:
    """A table whose first line names ``file_name`` (or ``file``, ``path``, ``image``) and a caption, with each caption
    put through ``change``. Raises InputError.
    """
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise InputError(f"not readable as CSV ({error})") from None
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    name = next((header.index(word) for word in _FILE_FIELDS if word in header), None)
    caption = next((header.index(word) for word in _TEXT_FIELDS if word in header), None)
    if name is None or caption is None:
        raise InputError("its first line has to name the columns file_name and text")
    changed = False
    for row in rows[1:]:
        if len(row) > max(name, caption):
            new = change(row[name], row[caption])
            changed |= new != row[caption]
            row[caption] = new
    if not changed:
        return text
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n" if "\r\n" in text else "\n").writerows(rows)
    return out.getvalue()


def document_rows(text: str, kind: str) -> list[tuple[str, str]]:
    """The pictures and captions of a document of the kind ``kohya``, ``metadata`` or ``csv``. Raises InputError."""
    rows: list[tuple[str, str]] = []

    def note(name: str, caption: str) -> str:
        rows.append((name, caption))
        return caption

    if kind == "kohya":
        for name, row in _kohya(text).items():
            # As training reads them: the caption, then the tags.
            parts = [words for field in ("caption", "tags") if (words := _words(row, field)) is not None]
            if parts:
                note(name, join_tags([part for part in parts if part]))
    else:
        (change_csv if kind == "csv" else change_metadata)(text, note)
    return rows


def caption_field(row: Mapping[str, Any]) -> str | None:
    """The field of a line that holds the caption."""
    return next((name for name in _TEXT_FIELDS if isinstance(row.get(name), str)), None)


def parse(text: str, place: str = "") -> Any:
    """JSON. Raises InputError."""
    try:
        return parse_json(text)
    except NoJson as error:
        raise InputError(f"{place}not readable as JSON ({error})") from None


class NamedPictures:
    """The pictures that a document names: beside it, else from the working folder, unless the name is a whole path.

    A name may lack the picture's suffix. Each folder is listed once.
    """

    def __init__(self, document: Path) -> None:
        self._document = document
        self._folders: dict[Path, PictureNames] = {}

    def path_of(self, name: str) -> Path:
        """Where a picture lies; of one that is not there, where it would lie by its name."""
        beside = self._document.parent / name  # a whole path stays what it is
        plain = name.replace("\\", "/")  # as Windows writes paths
        places = list(dict.fromkeys((beside, self._document.parent / plain, Path(name), Path(plain))))
        for place in places:
            picture = self._in(place.parent).of(place.name)
            if picture is not None:
                return picture
        return next((place for place in places if os.path.isfile(place)), beside)  # noqa: PTH113 - names may be too long

    def _in(self, folder: Path) -> PictureNames:
        if folder not in self._folders:
            paths = find_files(folder, _PICTURES) if os.path.isdir(folder) else []  # noqa: PTH112
            self._folders[folder] = PictureNames({path.name: path for path in paths})
        return self._folders[folder]
