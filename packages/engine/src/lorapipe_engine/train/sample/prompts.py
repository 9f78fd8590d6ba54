"""Prompt files for samples, in kohya's form: ``text --n negative --w 512 --h 512 --s 30 --l 7.5 --d 1``."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorapipe_engine.errors import ConfigError, InputError


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


def read_prompts(path: Path, default: Prompt) -> list[Prompt]:
    """The prompts of a .txt (a line each, ``#`` comments), .toml or .json file; ``default`` fills what is not given.

    Raises InputError for a file that cannot be read or is empty, ConfigError for a bad value with its line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"sample_prompts: {path} cannot be read as UTF-8 text ({error})") from error
    if path.suffix.lower() == ".toml":
        found = _from_toml(text, path, default)
    elif path.suffix.lower() == ".json":
        found = _from_json(text, path, default)
    else:
        lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1)]
        found = [
            parse_line(line, default, f"{path}:{n}") for n, line in lines if line and not line.startswith("#")
        ]
    if not found:
        raise InputError(f"sample_prompts: {path} holds no prompt")
    return found


def parse_line(line: str, default: Prompt, where: str = "prompt") -> Prompt:
    """One line of a prompt file. Unknown options (``--ctr``) are an error, not silently dropped."""
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
    try:
        table = tomllib.loads(text).get("prompt", {})
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    subsets = table.pop("subset", [table])
    return [_from_table({**table, **row}, default, str(path)) for row in subsets]


def _from_json(text: str, path: Path, default: Prompt) -> list[Prompt]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: expected a list of prompts")
    return [_from_table(row, default, str(path)) for row in rows]


def _from_table(row: dict[str, Any], default: Prompt, where: str) -> Prompt:
    fields = {}
    for key, value in row.items():
        if key not in TABLE_KEYS:
            raise ConfigError(f"{where}: '{key}' is not known in a prompt; known: {', '.join(TABLE_KEYS)}")
        fields[TABLE_KEYS[key]] = value
    return _checked(replace(default, **fields), where)


def _checked(prompt: Prompt, where: str) -> Prompt:
    if prompt.steps < 1:
        raise ConfigError(f"{where}: steps must be 1 or more")
    size = prompt.width // 8 * 8, prompt.height // 8 * 8
    if min(size) < 8:
        raise ConfigError(f"{where}: {prompt.width}x{prompt.height} is too small")
    return replace(prompt, width=size[0], height=size[1])
