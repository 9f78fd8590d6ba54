"""Tags to offer: those that a tagger would give a picture, and words to complete what is typed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lorapipe_dataset.check.edit.shelf import Shelf
from lorapipe_dataset.check.pictures.dataset import Picture
from lorapipe_dataset.clean.captions.tags import split_caption
from lorapipe_dataset.clean.captions.words import read_categories
from lorapipe_dataset.clean.files.inputs import record_facts
from lorapipe_dataset.texts.vocabulary import canonical, read_vocabulary, shown
from lorapipe_engine.command.records import Record, read_list
from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import InputError


class Hints:
    """The tags of each picture by its whole path, the likeliest first."""

    def __init__(self, tags: dict[str, list[str]] | None = None) -> None:
        self._tags = tags or {}

    def __bool__(self) -> bool:
        return bool(self._tags)

    def of(self, picture: Picture) -> list[str]:
        """What a picture's caption lacks of its tags."""
        tags = self._tags.get(_whole(picture.path))
        if not tags:
            return []
        there = set(picture.keys)
        return [tag for tag in tags if canonical(tag) not in there]


def read_hints(path: Path, shelf: Shelf) -> Hints:
    """The tags in a tagger's records. Raises InputError for a file that is none, or has none of these pictures."""
    try:
        with path.open("rb") as file:
            records = list(read_list(file, str(path)))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    wanted = {_whole(item.picture.path) for item in shelf.items}
    tags = {_whole(record.path): _tags_of(record) for record in records}
    here = {place: row for place, row in tags.items() if place in wanted and row}
    if not here:
        raise InputError(
            f"{path}: no record in it has tags for a picture of {shelf.root}; "
            f"lora-tag {shelf.root} --no-txt --jsonl > {path.name} makes them"
        )
    if len(here) < len(wanted):
        say(f"lora-check: note: {path}: hints for {len(here):,} of {len(wanted):,} pictures")
    return Hints(here)


def _tags_of(record: Record) -> list[str]:
    scores = record_facts(record.data).scores
    if scores:
        return [shown(tag) for tag in sorted(scores, key=lambda tag: -scores[tag])]
    caption = record.data.get("caption")
    return split_caption(caption.split("\n", 1)[0], (",",)) if isinstance(caption, str) else []


def _whole(path: Path) -> str:
    return os.path.normcase(os.path.realpath(path))


def read_words(path: Path | None) -> list[list[Any]]:
    """The tags of a tagger's list with count and category, the commonest first. Raises InputError."""
    if path is None:
        return []
    counts, categories = read_vocabulary(path).counts, read_categories(path)
    rows = sorted(counts.items(), key=lambda row: (-row[1], row[0]))
    return [[shown(tag), count, categories.get(tag)] for tag, count in rows]
