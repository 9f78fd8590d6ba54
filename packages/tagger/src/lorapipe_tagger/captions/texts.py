"""What options say in words: lists of tags, pairs, thresholds."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorapipe_engine.command.json_text import NoJson, parse_json
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.pictures.tag_lists import COMMA, split_list
from lorapipe_tagger.scoring.select import check_threshold, spelling

AUTO = "auto"
OFF = math.inf
_ARROWS = ("=>", "->", "\t")


def parse_threshold(text: str | None, option: str) -> float | str | None:
    """A number, OFF for "off" or more than 1, AUTO, or None. Raises ConfigError for anything else."""
    if text is None or text == AUTO:
        return text
    if text.lower() == "off":
        return OFF
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{option} {text or repr(text)}: not a number, 'auto' or 'off'") from None
    check_threshold(value, option)
    return OFF if value > 1 else value


def read_pairs(texts: Sequence[str], names: Collection[str]) -> dict[str, list[str]]:
    """``a=b`` pairs (``a=b, c`` for several, ``a=`` for none), and files of them.

    A tag may itself hold an equals sign: the pair is split where its left side is one of ``names``, else at the first
    sign; ``a => b`` leaves no doubt. Raises ConfigError for a text that is neither pair nor file.
    """
    known = {spelling(name) for name in names} if texts else set()
    pairs: dict[str, list[str]] = {}
    for text in texts:
        path = Path(text)
        if not any(arrow in text for arrow in _ARROWS) and path.is_file():
            pairs |= read_pair_file(path, known)
            continue
        pair = _split_pair(text, known)
        if pair is None:
            raise ConfigError(f"--replace {text}: neither 'tag=other' nor a file of such lines")
        pairs[spelling(pair[0])] = split_list([pair[1]])
    return pairs


def read_list_files(paths: Iterable[Path]) -> list[str]:
    """The tags in files: a line each, or several with commas; ``#`` begins a remark. Raises InputError."""
    tags: list[str] = []
    for path in paths:
        lines = _read_text(path).splitlines()
        tags += split_list(line for line in lines if not line.lstrip().startswith("#"))
    return tags


def sd_pairs(text: str) -> list[str]:
    """The pairs of ``--tag_replacement a,b;c,d`` as ``a => b``; ``\\,`` and ``\\;`` are letters of a tag.

    Raises ConfigError for a piece that is no pair.
    """
    pairs = []
    for piece in re.split(r"(?<!\\);", text) if text else ():
        parts = COMMA.split(piece.replace("\\;", ";"))
        if len(parts) != 2 or not parts[0].strip():
            raise ConfigError(f"--tag_replacement {piece!r}: OLD,NEW is needed, with a semicolon to the next")
        old = parts[0].strip().replace("\\,", ",")
        pairs.append(f"{old} => {parts[1].strip()}")
    return pairs


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 (byte {error.start})") from error


def read_pair_file(path: Path, known: Collection[str] = ()) -> dict[str, list[str]]:
    """Pairs from a file: a JSON object, or lines ``a=b``, ``a => b``, ``a -> b``, ``a,b``, or with a tab.

    Several lines for one tag add up. Raises InputError naming the line that is none.
    """
    text = _read_text(path)
    if text.lstrip().startswith("{"):
        return _read_json(text, path)
    pairs: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        pair = _split_pair(line, known) or _split_comma(line)
        if pair is None:
            raise InputError(f"{path}, line {number}: needs 'tag=other', 'tag -> other' or 'tag,other'")
        pairs.setdefault(spelling(pair[0]), []).extend(split_list([pair[1]]))
    return pairs


def _read_json(text: str, path: Path) -> dict[str, list[str]]:
    try:
        table: Any = parse_json(text)
    except NoJson as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(table, dict):
        raise InputError(f'{path}: needs an object of tags, as {{"tag": "other"}}')
    pairs: dict[str, list[str]] = {}
    for name, value in table.items():
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(one, str) for one in values):
            raise InputError(f"{path}: {name!r} must have a tag or a list of tags")
        pairs[spelling(name)] = values
    return pairs


def _split_pair(text: str, known: Collection[str]) -> tuple[str, str] | None:
    for arrow in _ARROWS:
        left, mark, right = text.partition(arrow)
        if mark and left.strip():
            return left, right
    places = [at for at, letter in enumerate(text) if letter == "=" and text[:at].strip()]
    for at in places:
        if spelling(text[:at]) in known:
            return text[:at], text[at + 1 :]
    return (text[: places[0]], text[places[0] + 1 :]) if places else None


def _split_comma(text: str) -> tuple[str, str] | None:
    parts = COMMA.split(text, maxsplit=1)
    return (parts[0].replace("\\,", ","), parts[1]) if len(parts) == 2 else None


def compared(pairs: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The mapping with its right sides in :func:`spelling`'s form, for comparing tags."""
    return {name: [spelling(one) for one in others] for name, others in pairs.items()}
