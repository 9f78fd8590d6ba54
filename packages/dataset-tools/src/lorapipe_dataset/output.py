"""What the tools print: JSON that holds any file name, and names for one line of a terminal."""

from __future__ import annotations

import json
from typing import Any

import click


def print_json(value: Any) -> None:
    """A value as one line of JSON on stdout, in UTF-8; escaped where a file name has bytes that are none."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        line = text.encode()
    except UnicodeEncodeError:
        line = json.dumps(value, allow_nan=False).encode()
    click.echo(line)


def printable(text: str) -> str:
    """A text without line ends and control characters: they are shown as escapes."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
