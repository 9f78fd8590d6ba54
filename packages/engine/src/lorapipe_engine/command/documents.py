"""Reading TOML and JSON that others wrote, bounded: every configuration of every tool is read here.

What a parser makes of a text may be far larger than the text: a key of 50,000 dots becomes gigabytes. So texts are
bounded in size, keys in their dots, values in their depth; and what no program can use (numbers beyond 64 bits, halves
of UTF-16 pairs) is refused here, with a line that says where.
"""

from __future__ import annotations

import codecs
import json
import re
import tomllib
from pathlib import Path
from typing import Any

from lorapipe_engine.errors import ConfigError, InputError

MOST_TOML = 1 << 20  # bytes
MOST_JSON = 1 << 24  # bytes; a list of a model's shards may take one of them
MOST_PARTS = 32  # of a dotted key
MOST_DEPTH = 64  # tables in tables
MOST_KEY = 1000  # letters
_LARGEST = 1 << 63
# Strings and comments, in which dots mean nothing; keys, whose dots are counted; a quotation that has no end, behind
# which the parser does not get either.
_TOML_WORDS = re.compile(
    r'''(?P<skipped>\#[^\n]*|"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?\'{3,5})
    |(?P<key>(?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')(?:[ \t]*\.[ \t]*(?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'))*)
    |(?P<unclosed>["'])''',
    re.VERBOSE | re.DOTALL,
)
_PART = re.compile(r""""(?:[^"\\\n]|\\.)*"|'[^'\n]*'|(\.)""", re.DOTALL)


def read_text(path: Path, most: int = MOST_TOML, what: str = "") -> str:
    """The text of a configuration file of ``most`` bytes: UTF-8, or UTF-16 with a byte order mark, as PowerShell 5
    writes what it is told to put into a file. ``what`` names its option in errors.

    Raises InputError for a file that cannot be read, is too large, or is no such text.
    """
    name = f"{what}: {path}" if what else str(path)
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{name!r}: cannot be read ({error})") from error
    if len(data) > most:
        raise InputError(f"{name}: is larger than {most:,} bytes, the most that a configuration may have")
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if is_wide else "utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: not {'UTF-16' if is_wide else 'UTF-8'} (byte {error.start})") from error


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """The tables of a TOML text; ``where`` names it in errors. Raises ConfigError."""
    _check_keys(text, where)
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise ConfigError(f"{where}: not TOML: {_reason(error)}{_mend(error, text)}") from None
    _check(table, where)
    return table


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text; ``where`` names it in errors. Raises ConfigError."""
    if len(text) > MOST_JSON:
        raise ConfigError(f"{where}: is longer than {MOST_JSON:,} letters, the most that is read")
    try:
        value = json.loads(text, object_pairs_hook=_table)
    except _Twice as error:
        raise ConfigError(f"{where}: {error} is given twice, with different values; leave one out") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON: {_reason(error)}") from None
    _check(value, where)
    return value


class _Twice(Exception):
    """A name that a table has twice."""


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A table of JSON. Of a name that is there twice one value would be lost, as TOML does not allow."""
    table = dict(pairs)
    if len(table) < len(pairs):
        for name, value in pairs:
            if table[name] != value:
                raise _Twice(name[:MOST_KEY])
    return table


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return "a number of too many digits" if "digits" in str(error) else str(error)


def _mend(error: Exception, text: str) -> str:
    """What to write where a path of Windows stands in double quotes, in which ``\\`` begins a code."""
    line = re.search(r"at line (\d+)", str(error))
    rows = text.split("\n")
    if line is None or "\\" not in rows[int(line[1]) - 1]:
        return ""
    return "; in a path write / for each \\, or put it in single quotes: 'D:\\folder'"


def _check_keys(text: str, where: str) -> None:
    """Raise ConfigError for a key of so many parts that parsing it would take gigabytes."""
    for match in _TOML_WORDS.finditer(text):
        if match["unclosed"]:
            return
        key = match["key"]
        if key and key.count(".") >= MOST_PARTS:
            dots = sum(part[1] is not None for part in _PART.finditer(key))
            if dots >= MOST_PARTS:
                line = text.count("\n", 0, match.start()) + 1
                raise ConfigError(
                    f"{where}, line {line}: a key of {dots + 1:,} parts; at most {MOST_PARTS} are taken"
                )


def _check(value: Any, where: str) -> None:
    """Raise ConfigError for what is too deep, too large a number, or no text."""
    waiting = [(value, 1)]
    while waiting:
        row, depth = waiting.pop()
        if depth > MOST_DEPTH:
            raise ConfigError(f"{where}: nested more than {MOST_DEPTH} deep")
        if isinstance(row, dict):
            for key in row:
                _check_text(key, where)
                if len(key) > MOST_KEY:
                    raise ConfigError(f"{where}: a key of {len(key):,} letters, {key[:40]!r}...")
            waiting += [(item, depth + 1) for item in row.values()]
        elif isinstance(row, list):
            waiting += [(item, depth + 1) for item in row]
        elif isinstance(row, str):
            _check_text(row, where)
        elif isinstance(row, int) and not -_LARGEST <= row < _LARGEST:
            raise ConfigError(f"{where}: a whole number of more than 64 bits")


def _check_text(text: str, where: str) -> None:
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ConfigError(f"{where}: {text[:40]!a} has half of a character (a lone surrogate)")
