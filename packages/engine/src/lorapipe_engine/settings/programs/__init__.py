"""Configuration files of other programs, read as options of ``lora-train``.

A module for each program says how its files are told from others (``marks``) and which options each key means
(``read``). Keys that have an option's own name go on under it, so what the options check is checked once. Every key
in which something stands is made into an option or named in a note. Programs whose files are not read are in
:mod:`.strangers`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorapipe_engine.command.configuration import Entry
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings.programs import civitai, easy_scripts, easy_scripts_old, kohya_ss, lora_scripts
from lorapipe_engine.settings.programs.strangers import refuse_stranger, refuse_text

Read = Callable[[Mapping[str, Any], Path], tuple[list[Entry], list[str]]]


@dataclass(frozen=True)
class Program:
    """A program by name, the keys that its files are told by, and how they are read."""

    name: str
    marks: Callable[[Mapping[str, Any]], list[str]]
    read: Read


_PROGRAMS = tuple(
    Program(module.NAME, module.marks, module.read)
    for module in (kohya_ss, easy_scripts, easy_scripts_old, lora_scripts, civitai)
)


class Programs:
    """Translates a whole file (see :class:`lorapipe_engine.command.configuration.Translate`); ``notes`` are what the
    user should know of it."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def check_text(self, text: str, path: Path) -> None:
        """Raise ConfigError for a text that is neither TOML nor JSON, where its form is known."""
        refuse_text(text, path)

    def __call__(self, table: Mapping[str, Any], path: Path) -> list[Entry] | None:
        """The options of another program's file, None for one in sd-scripts' form.

        Raises ConfigError for a file with keys of two programs, or one that asks for what is no LoRA of these models.
        """
        asked = [(program, marks) for program in _PROGRAMS if (marks := program.marks(table))]
        if len(asked) > 1:
            one, other = asked[:2]
            raise ConfigError(
                f"{path}: {one[1][0]} is a key of {one[0].name}, {other[1][0]} one of {other[0].name}; give a file of "
                "one program"
            )
        if not asked:
            refuse_stranger(table, path)
            return None
        program = asked[0][0]
        entries, notes = program.read(table, path)
        self.notes += [f"{path} is read as a file of {program.name}", *notes]
        return entries
