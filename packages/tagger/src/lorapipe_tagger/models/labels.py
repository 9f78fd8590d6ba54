"""The tags that a tagger's outputs stand for: names and categories, row by row."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorapipe_engine.command.json_text import NoJson, parse_json
from lorapipe_engine.command.text import hidden_letter
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import quote
from lorapipe_engine.models.onnxfile import LFS_POINTER

RATING, GENERAL, CHARACTER = "rating", "general", "character"
# Danbooru's numbers; 9 is the WD taggers' own.
NUMBERED: Mapping[int, str] = {
    0: GENERAL,
    1: "artist",
    3: "copyright",
    4: CHARACTER,
    5: "meta",
    9: RATING,
    10: "year",
}
# e621's.
NUMBERED_E621: Mapping[int, str] = {
    0: GENERAL,
    1: "artist",
    3: "copyright",
    4: CHARACTER,
    5: "species",
    7: "meta",
    8: "lore",
    9: RATING,
}
_ONLY_E621 = frozenset({"7", "8"})
CATEGORIES = (
    RATING,
    GENERAL,
    CHARACTER,
    "copyright",
    "artist",
    "species",
    "meta",
    "lore",
    "quality",
    "model",
    "year",
)
OTHER = "other"
MOST_BYTES = 64 << 20  # of a list; the longest known has 8 MB
_SHOWN = 60  # letters of a tag in a message


@dataclass(frozen=True)
class Labels:
    """Output i is the tag ``names[i]`` (with underscores) of ``categories[i]``. ``series`` of a character's name,
    where the model's list has them, and ``thresholds`` for each tag (None for a tag without one).
    """

    names: Sequence[str]
    categories: Sequence[str]
    series: Mapping[str, Sequence[str]]
    thresholds: Sequence[float | None] | None = None

    def __len__(self) -> int:
        return len(self.names)


def read_labels(path: Path) -> Labels:
    """The labels in ``selected_tags.csv`` or in one of the JSON files that other taggers come with.

    Raises InputError for a file that is neither.
    """
    try:
        if (size := path.stat().st_size) > MOST_BYTES:
            raise InputError(
                f"{path}: {size:,} bytes, more than a tagger's list of tags has ({MOST_BYTES:,})"
            )
        text = path.read_text(encoding="utf-8-sig")
        if text.startswith(LFS_POINTER):
            raise InputError(
                f"{path}: a git-lfs pointer, not the list itself; run git lfs pull there, or download it again"
            )
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start}), so not a tagger's list of tags") from error
    try:
        labels = _from_csv(text, path) if path.suffix.lower() == ".csv" else _from_json(text, path)
    except csv.Error as error:
        raise InputError(f"{path}: cannot be read as CSV ({error})") from error
    if not labels.names:
        raise InputError(f"{path}: has no tags in it")
    return labels


def _from_csv(text: str, path: Path) -> Labels:
    rows = csv.reader(text.splitlines())
    columns = {name.strip(): at for at, name in enumerate(next(rows, []))}
    numbers = NUMBERED_E621 if _is_e621(text) else NUMBERED
    limits: list[float | None] = []
    limit_at = columns.get("best_threshold")
    if not {"name", "category"} <= set(columns):
        raise InputError(
            f'{path}: needs the columns "name" and "category", as the WD taggers\' lists have them'
        )
    name_at, category_at, series_at = columns["name"], columns["category"], columns.get("ips")
    names: list[str] = []
    categories: list[str] = []
    series: dict[str, list[str]] = {}
    known: dict[str, str] = {}
    for row in rows:
        if not row:
            continue
        place = f"{path}, line {rows.line_num}"
        if len(row) <= max(name_at, category_at) or not row[name_at]:
            raise InputError(f"{place}: a row without name or category")
        value = row[category_at]
        if value not in known:
            known[value] = _category(value, place, numbers)
        _check_letters(row[name_at], place)
        names.append(row[name_at])
        categories.append(known[value])
        if limit_at is not None:
            limits.append(_limit(row[limit_at] if limit_at < len(row) else "", place))
        if series_at is not None and series_at < len(row) and (works := _series(row[series_at])):
            for name in works:
                _check_letters(name, place)
            series[row[name_at]] = works
    return Labels(names, categories, series, limits if limit_at is not None else None)


def _check_letters(name: str, place: str) -> None:
    """Raise InputError for a tag with characters that a terminal or a caption would obey and nobody sees."""
    if letter := hidden_letter(name):
        raise InputError(
            f"{place}: the tag '{name[:_SHOWN]}' has the control or directional character "
            f"U+{ord(letter):04X}; do not use this list, or download it again"
        )


def _is_e621(text: str) -> bool:
    """Whether the categories are numbered as e621 has them: its 7 and 8 are none of Danbooru's."""
    rows = csv.DictReader(text.splitlines())
    return any((row.get("category") or "").strip() in _ONLY_E621 for row in rows)


def _limit(text: str, place: str) -> float | None:
    """A tag's own threshold. Raises InputError for a text that is none."""
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InputError(f"{place}: best_threshold {quote(text)} is no threshold (0 to 1)")
    return value


def _series(text: str) -> list[str]:
    try:
        works = parse_json(text) if text else []
    except NoJson:
        return []
    return [name for name in works if isinstance(name, str)] if isinstance(works, list) else []


def _category(value: str | int, place: str, numbers: Mapping[int, str] = NUMBERED) -> str:
    text = str(value).strip().lower()
    if text in CATEGORIES:
        return text
    try:
        return numbers.get(int(float(text)), OTHER)
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{place}: {quote(value)} is no category (a number such as 0, 4 or 9, or a name)"
        ) from error


def _from_json(text: str, path: Path) -> Labels:
    try:
        root: Any = parse_json(text)
    except NoJson as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    try:
        pairs = _mapping_of(root)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: no list of tags that is known here ({error})") from error
    names = [name for name, _ in pairs]
    for number, name in enumerate(names):
        if not isinstance(name, str):
            raise InputError(f"{path}: the tag of output {number} is {quote(name)}, which is no text")
        _check_letters(name, f"{path}, output {number}")
    return Labels(names, [_category(category, str(path)) for _, category in pairs], {})


def _mapping_of(root: Any) -> list[tuple[str, str]]:
    """(tag, category) by output from cl_tagger's, camie's or PixAI's JSON."""
    if "tags_split" in root:
        return _parted(root["tags"], root["tags_split"])
    if "dataset_info" in root:
        root = root["dataset_info"]["tag_mapping"]
    if "idx_to_tag" in root:
        categories = root["tag_to_category"]
        table = {int(key): (tag, categories[tag]) for key, tag in root["idx_to_tag"].items()}
    else:
        table = {int(key): (row["tag"], row["category"]) for key, row in root.items()}
    if sorted(table) != list(range(len(table))):
        raise ValueError("its numbers do not count 0, 1, 2, ...")
    return [table[index] for index in range(len(table))]


def _parted(tags: Any, parts: Any) -> list[tuple[str, str]]:
    """PixAI's ``config.json``: all tags, and how many of each category stand one after another."""
    counts = [(str(name), int(count)) for name, count in parts]
    if not isinstance(tags, list) or sum(count for _, count in counts) != len(tags):
        raise ValueError("tags_split does not count the tags of the list")
    if any(count < 0 for _, count in counts):
        raise ValueError("tags_split counts fewer than none")
    # Styles are what Danbooru calls artists.
    categories = ["artist" if name == "style" else name for name, count in counts for _ in range(count)]
    return list(zip(tags, categories, strict=True))
