"""Reading a file of options: TOML or JSON, in the tool's own names or in those of another program.

A file in another program's form is first translated to options by name (see :class:`Translate`); a key that is no
option may stand for others, or be known and of no use (see :mod:`lorapipe_engine.command.foreign`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lorapipe_engine.command.documents import parse_json, parse_toml, read_text
from lorapipe_engine.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """An option of a file: the name that is asked for, its value, and the key that it stands under, with its tables
    (``optimizer.learning_rate``)."""

    name: str
    value: Any
    key: str


class Translate(Protocol):
    """Reads a whole file in another program's form; None where it is not in such a form. Raises ConfigError."""

    def __call__(self, table: Mapping[str, Any], path: Path) -> list[Entry] | None: ...

    def check_text(self, text: str, path: Path) -> None:
        """Raise ConfigError for the text of a file that is neither TOML nor JSON, where its form is known."""


@dataclass(frozen=True)
class Item:
    """One value, counted from 0, of an option that takes several: another program has an option, ``name``, for each."""

    number: int
    value: Any
    name: str


def join_items(name: str, items: Iterable[Item]) -> list[Any]:
    """The values of the option ``name``, in order. Raises ConfigError where one of them is missing."""
    given = list(items)
    values = {item.number: item.value for item in given}
    if sorted(values) != list(range(len(values))) or len(values) < 2:
        raise ConfigError(
            f"{given[0].name}: is one of the values of {name}, and the other is missing; use {name}"
        )
    return [values[number] for number in sorted(values)]


# Given the name, value and place of a key that is no option: None where it is unknown, else the options that it means.
Foreign = Callable[[str, Any, str], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Given:
    """A value of the file with the place that errors name, and the key that it stands under."""

    value: Any
    place: str
    key: str


def read_options(
    path: Path,
    known: Collection[str],
    aliases: Mapping[str, str],
    foreign: Foreign | None = None,
    translate: Translate | None = None,
) -> dict[str, Given]:
    """The options of a file, whatever sections they stand in, by name. ``known``: the names of the tool's options;
    ``aliases``: their names by the second ones.

    Raises ConfigError for an unknown or repeated key, InputError for a file that cannot be read.
    """
    path = _with_suffix(path)
    text = read_text(path)
    if translate is not None:
        translate.check_text(text, path)
    table = _parsed(path, text)
    entries = translate(table, path) if translate is not None else None
    is_translated = entries is not None
    if entries is None:
        entries = flatten(table)
    options: dict[str, Given] = {}
    meant: list[tuple[str, Given]] = []
    for entry in entries:
        name = entry.name.replace("-", "_")
        name = aliases.get(name, name)
        own_key = entry.key.rpartition(".")[2]
        place = place_of(path, text, own_key)
        if own_key.replace("-", "_") != name and aliases.get(own_key) != name:
            place = f"{place}, {own_key}"
        if name in known:
            _add(options, name, Given(entry.value, place, entry.key), path)
            continue
        means = foreign(name, entry.value, place) if foreign is not None else None
        if means is None and is_translated and is_nothing(entry.value):
            continue  # what a later version of the program has, and leaves empty
        if means is None:
            raise ConfigError(f"{place}: {entry.key}: unknown key{nearest(name, [*known, *aliases])}")
        meant += [(own, Given(value, place, entry.key)) for own, value in means.items()]
    items: dict[str, list[Given]] = {}
    for name, given in meant:
        if isinstance(given.value, Item):
            items.setdefault(name, []).append(given)
        else:
            _add(options, name, given, path)
    for name, parts in items.items():
        _add(options, name, replace(parts[0], value=join_items(name, (part.value for part in parts))), path)
    return options


def _with_suffix(path: Path) -> Path:
    """The file, whose .toml may be left out, as sd-scripts lets it."""
    longer = path.with_name(f"{path.name}.toml") if path.name else path
    return longer if not path.exists() and longer.is_file() else path


def _add(options: dict[str, Given], name: str, given: Given, path: Path) -> None:
    before = options.get(name)
    if before is not None and before.value == given.value:
        return
    if before is not None:
        raise ConfigError(
            f"{path}: {name}: given twice, as {before.key} and {given.key}, with different values"
        )
    options[name] = given


def is_nothing(value: Any) -> bool:
    """Whether a value stands for an option that is not given: nothing, false, an empty text or an empty list."""
    return value is None or value is False or value == "" or value in ([], ())


def _parsed(path: Path, text: str) -> dict[str, Any]:
    # Presets are named .json, and sometimes anything.
    if path.suffix.lower() != ".json" and not text.lstrip().startswith("{"):
        return parse_toml(text, str(path))
    table = parse_json(text, str(path))
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: expected an object with options as its keys")
    return table


def flatten(table: Mapping[str, Any], section: str = "") -> list[Entry]:
    """The keys of a table and of the tables in it, whatever these are called."""
    rows: list[Entry] = []
    for key, value in table.items():
        if isinstance(value, dict):
            rows += flatten(value, f"{section}{key}.")
        else:
            rows.append(Entry(key, value, f"{section}{key}"))
    return rows


def place_of(path: Path, text: str, key: str) -> str:
    """The file, and the line of ``key`` where only one can be meant."""
    # In JSON a colon stands behind a key.
    pattern = re.compile(rf"^[^#=\n]*?(?<![\w-])[\"']?{re.escape(key)}[\"']?[ \t]*[=:]", re.MULTILINE)
    ends = [match.end() for match in pattern.finditer(text)]
    return f"{path}, line {text.count(chr(10), 0, ends[0]) + 1}" if len(ends) == 1 else str(path)


def nearest(name: str, known: Iterable[str]) -> str:
    """``, did you mean 'x'?`` for a misspelt name, or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(name, list(known), 1)
    return f", did you mean '{close[0]}'?" if close else ""
