"""Prompt files for samples, in kohya's form: ``text --n negative --w 512 --h 512 --s 30 --l 7.5 --d 1``."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorapipe_engine.command.documents import parse_json, parse_toml, read_text
from lorapipe_engine.errors import ConfigError, InputError

MOST_STEPS = 1000  # the noise schedule has no more
MOST_SIDE = 8192  # pixels
MOST_SHOWN = 60  # letters of a value, in an error
_SUFFIXES = frozenset({".txt", ".toml", ".json"})


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One picture to draw. Sizes in pixels, a multiple of 8; ``scale`` is the classifier-free guidance."""

    text: str
    negative: str = ""
    width: int = 512
    height: int = 512
    steps: int = 30
    scale: float = 7.5
    seed: int | None = None
    sampler: str | None = None


# Option letter of a line -> field, and how its value is read.
LETTERS: dict[str, tuple[str, type]] = {
    "n": ("negative", str),
    "w": ("width", int),
    "h": ("height", int),
    "d": ("seed", int),
    "s": ("steps", int),
    "l": ("scale", float),
    "ss": ("sampler", str),
}
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("text", "negative", "sampler"), (str,)),
    **dict.fromkeys(("width", "height", "seed", "steps"), (int,)),
    "scale": (int, float),
}
# Texts and chats make one long dash of two, and pictures of the webui carry their options in lines of their own.
_LONG_DASH = re.compile(rf"\s[\u2013\u2014\u2212](?P<letter>{'|'.join(LETTERS)})\s+\S")
_INFOTEXT = ("Negative prompt:", "Steps: ")
TABLE_KEYS = {
    "prompt": "text",
    "negative_prompt": "negative",
    "width": "width",
    "height": "height",
    "seed": "seed",
    "sample_steps": "steps",
    "scale": "scale",
    "sample_sampler": "sampler",
}


def is_prompt_text(given: str) -> bool:
    """Whether what is given as the file of prompts is no file but prompts, as GUIs keep them: several lines or words,
    without a suffix of such a file."""
    lines = given.strip().splitlines()
    if len(lines) > 1:
        return True
    path = Path(given).expanduser()
    return " " in given.strip() and path.suffix.lower() not in _SUFFIXES and not os.path.lexists(path)


def read_prompts(given: str | Path, default: Prompt) -> list[Prompt]:
    """The prompts of a .txt (a line each, ``#`` comments), .toml or .json file, or of a text that holds such lines;
    ``default`` fills what is not given.

    Raises InputError for a file that cannot be read or is empty, ConfigError for a bad value with its line.
    """
    if isinstance(given, str) and is_prompt_text(given):
        return _from_lines(given, "sample_prompts", default)
    path = Path(given).expanduser()
    text = read_text(path, what="sample_prompts")
    if path.suffix.lower() == ".toml":
        prompts = _from_toml(text, path, default)
    elif path.suffix.lower() == ".json":
        prompts = _from_json(text, path, default)
    else:
        prompts = _from_lines(text, str(path), default)
    if not prompts:
        raise InputError(f"sample_prompts: {path} holds no prompt")
    return prompts


def _from_lines(text: str, where: str, default: Prompt) -> list[Prompt]:
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1)]
    return [
        parse_line(line, default, f"{where}:{n}") for n, line in lines if line and not line.startswith("#")
    ]


def parse_line(line: str, default: Prompt, where: str = "prompt") -> Prompt:
    """One line of a prompt file. Unknown options (``--ctr``) are an error, not silently dropped."""
    if dash := _LONG_DASH.search(" " + line):
        raise ConfigError(
            f"{where}: {dash[0].split()[0]}: begins with a long dash, as texts have it; write --{dash['letter']}"
        )
    if line.startswith(_INFOTEXT):
        raise ConfigError(
            f"{where}: '{line[:MOST_SHOWN]}': options as pictures of the webui carry them; write them behind the "
            "prompt, as --n NEGATIVE --s 30 --l 7"
        )
    pieces = re.split(r"\s--(?=[A-Za-z])", " " + line)
    fields: dict[str, Any] = {"text": pieces[0].strip()}
    for piece in pieces[1:]:
        letter, _, value = piece.partition(" ")
        if letter not in LETTERS:
            raise ConfigError(
                f"{where}: --{letter} is not known in a prompt; known: --{', --'.join(LETTERS)}"
            )
        name, kind = LETTERS[letter]
        try:
            fields[name] = kind(value.strip())
        except ValueError as error:
            raise ConfigError(f"{where}: --{letter} takes a number, not '{value.strip()}'") from error
    return _checked(replace(default, **fields), where)


def _from_toml(text: str, path: Path, default: Prompt) -> list[Prompt]:
    tables = parse_toml(text, str(path))
    for name in tables:
        if name != "prompt":
            raise ConfigError(f"{path}: {name}: unknown key; prompts stand in [prompt] and [[prompt.subset]]")
    table = tables.get("prompt", {})
    if not isinstance(table, dict):
        shown = json.dumps(table, default=str)[:MOST_SHOWN]
        raise ConfigError(f"{path}: prompt: must be a table, [prompt], not {shown}")
    rows = table.pop("subset", [{}])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path}: prompt.subset: must be tables, each under [[prompt.subset]]")
    return [
        _from_table({**table, **row}, default, f"{path}: prompt {number}")
        for number, row in enumerate(rows, 1)
    ]


def _from_json(text: str, path: Path, default: Prompt) -> list[Prompt]:
    rows = parse_json(text, str(path))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path}: expected a list of prompts, each a table")
    return [_from_table(row, default, f"{path}: prompt {number}") for number, row in enumerate(rows, 1)]


def _from_table(row: dict[str, Any], default: Prompt, where: str) -> Prompt:
    fields: dict[str, Any] = {}
    for key, value in row.items():
        if key not in TABLE_KEYS:
            raise ConfigError(f"{where}: '{key}' is not known in a prompt; known: {', '.join(TABLE_KEYS)}")
        name = TABLE_KEYS[key]
        kinds = _KINDS[name]
        if not isinstance(value, kinds) or isinstance(value, bool):
            shown = json.dumps(value, default=str)[:MOST_SHOWN]
            raise ConfigError(f"{where}: {key}: expected {_NAMES[kinds]}, got {shown}")
        fields[name] = value
    if "text" not in fields:
        raise ConfigError(f"{where}: has no 'prompt', the text to draw")
    return _checked(replace(default, **fields), where)


_NAMES = {(str,): "a text", (int,): "a whole number", (int, float): "a number"}


def _checked(prompt: Prompt, where: str) -> Prompt:
    if not 1 <= prompt.steps <= MOST_STEPS:
        raise ConfigError(f"{where}: steps must be from 1 to {MOST_STEPS}, not {prompt.steps}")
    if prompt.seed is not None and not 0 <= prompt.seed < 1 << 63:
        raise ConfigError(
            f"{where}: the seed must be from 0 to {(1 << 63) - 1}, not {prompt.seed}; without one "
            "the run's seed is taken"
        )
    if not math.isfinite(prompt.scale):
        raise ConfigError(f"{where}: the scale {prompt.scale} is not a usable number")
    if max(prompt.width, prompt.height) > MOST_SIDE:
        raise ConfigError(
            f"{where}: {prompt.width}x{prompt.height} is too large; at most {MOST_SIDE} px a side"
        )
    size = prompt.width // 8 * 8, prompt.height // 8 * 8
    if min(size) < 8:
        raise ConfigError(f"{where}: {prompt.width}x{prompt.height} is too small")
    return replace(prompt, width=size[0], height=size[1])
