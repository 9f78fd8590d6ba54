"""The words of a command line before click parses them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import click

from lorapipe_engine.command.shared import plain
from lorapipe_engine.command.text import one_line

_AT_HOME = re.compile(r"(--[\w-]+=)?(~/.*)", re.DOTALL)


def expanded(word: str) -> str:
    """The word with the home folder for a ``~`` that no shell has expanded, as bash leaves it in ``--output=~/x``."""
    match = _AT_HOME.fullmatch(word)
    return word if match is None else (match[1] or "") + os.path.expanduser(match[2])  # noqa: PTH111


def check_values(parser: Any, words: Sequence[str]) -> None:
    """Raise UsageError where an option has another option of the command in the place of its value. Click would take
    that for the value: ``--trigger --dry-run`` would write, with the trigger "--dry-run".
    """
    options = {**parser._long_opt, **parser._short_opt}
    number = 0
    while number < len(words) and words[number] != "--":
        name = words[number]
        number += 1
        option = options.get(plain(name))
        if option is None or not option.takes_value or getattr(option.obj, "_flag_needs_value", False):
            continue
        values = words[number : number + option.nargs]
        taken = next((word for word in values if plain(word.partition("=")[0]) in options), None)
        if taken is not None:
            meant = f"{name}={taken}" if name.startswith("--") else f"./{taken}"
            raise click.UsageError(
                f"{one_line(name)} needs a value, and {one_line(taken)} behind it is an option; "
                f"{one_line(meant)} means the word itself"
            )
        number += option.nargs
