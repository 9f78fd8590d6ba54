"""Axes of a plan: ``weight:0.7-1.5 [5]``, ``file:run/*.safetensors``, by our names or AUTOMATIC1111's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Literal

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.sampling.values import Item, read_decimals, read_texts, read_whole_numbers

Value = float | int | str
Form = Literal["whole", "decimal", "text"]


@dataclass(frozen=True)
class AxisKind:
    """What an axis changes. ``spellings``: its names elsewhere, folded. ``numbered``: ``weight 2`` is the second
    network's.
    """

    name: str
    form: Form
    spellings: tuple[str, ...] = ()
    numbered: bool = False


KINDS: Mapping[str, AxisKind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            AxisKind("file", "text", ("addnet model", "network", "lora", "epoch"), numbered=True),
            AxisKind("weight", "decimal", ("addnet weight", "strength"), numbered=True),
            AxisKind("unet", "decimal", ("addnet unet weight", "unet weight"), numbered=True),
            AxisKind(
                "te",
                "decimal",
                ("addnet tenc weight", "te weight", "text encoder", "text encoder weight"),
                numbered=True,
            ),
            AxisKind("seed", "whole"),
            AxisKind("prompt", "text"),
            AxisKind("sr", "text", ("prompt s/r", "s/r", "prompt sr")),
            AxisKind("negative", "text", ("negative prompt",)),
            AxisKind("cfg", "decimal", ("cfg scale", "scale")),
            AxisKind("steps", "whole"),
            AxisKind("sampler", "text"),
            AxisKind("schedule", "text", ("schedule type", "scheduler")),
            AxisKind("eta", "decimal"),
            AxisKind("size", "text"),
            AxisKind("clip skip", "whole"),
            AxisKind("base", "text", ("checkpoint name", "checkpoint", "model")),
            AxisKind("vae", "text"),
        )
    }
)
# Axes of A1111 for what is not done here.
FOREIGN = (
    *("nothing", "denoising", "denoising strength", "prompt order", "var. seed", "var. strength", "styles"),
    *(
        "hires steps",
        "hires upscaler",
        "hires sampler",
        "initial noise multiplier",
        "extra noise",
        "sigma churn",
    ),
    *("sigma min", "sigma max", "sigma noise", "schedule min sigma", "schedule max sigma", "schedule rho"),
    *("cond. image mask weight", "unipc order", "face restore", "token merging ratio", "rng", "fp8 mode"),
    *("token merging ratio high-res", "always discard next-to-last sigma", "sgm noise multiplier"),
    *("refiner checkpoint", "refiner switch at", "train/eval", "beta schedule alpha", "beta schedule beta"),
)
_NUMBERED = re.compile(r"(.*?)\s*([1-9])")


@dataclass(frozen=True)
class Axis:
    """An axis with its values, in order.

    ``number``: which network of a cell it concerns, from 1. ``search``: what a replacing axis searches for; A1111's is
    its first value. ``title``: its name in records. ``columns``: where each value begins in the option, for errors.
    """

    kind: AxisKind
    values: tuple[Value, ...]
    where: str
    title: str
    number: int = 1
    search: str = ""
    columns: tuple[int, ...] = ()

    def place_of(self, index: int) -> str:
        """The option and column of a value, as errors name it."""
        return f"{self.where}, column {self.columns[index]}" if index < len(self.columns) else self.where


def parse_axis(word: str, where: str) -> Axis:
    """The axis that a word such as ``weight:0.7-1.5 [5]`` stands for; ``where`` names its option in errors.

    Seeds of -1 are left as they are, files and samplers are not looked up. Raises ConfigError for an unknown axis, and
    with the column for malformed values.
    """
    name, colon, text = word.partition(":")
    if not colon:
        raise ConfigError(f"{where}: '{word}' is no axis; write NAME:VALUES, as weight:0.7-1.5 [5]")
    kind, number = find_kind(name, where)
    first = len(name) + 2
    title = kind.name.replace(" ", "_") if number == 1 else f"{kind.name} {number}"
    values: Sequence[Value]
    columns: tuple[int, ...] = ()
    if kind.form == "text":
        items = _texts(kind, text, where, first)
        values, columns = [item.text for item in items], tuple(item.column for item in items)
    else:
        read = read_whole_numbers if kind.form == "whole" else read_decimals
        values = read(text, where, first)
    if not values:
        raise ConfigError(f"{where}, column {first}: the axis {kind.name} has no value")
    search = str(values[0]) if kind.name == "sr" else ""
    if kind.name == "sr" and not search:
        raise ConfigError(f"{where}, column {first}: the first value is the text to replace, and is empty")
    return Axis(kind, tuple(values), where, title, number, search, columns)


def find_kind(name: str, where: str) -> tuple[AxisKind, int]:
    """The kind of axis that a name stands for, and the number of its network.

    Raises ConfigError for an unknown name, with the nearest, and by name for those of A1111 that are not ours.
    """
    folded = _folded(name)
    kind = _by_name(folded)
    if kind is not None:
        return kind, 1
    numbered = _NUMBERED.fullmatch(folded)
    kind = _by_name(numbered[1]) if numbered else None
    if numbered and kind is not None and kind.numbered:
        return kind, int(numbered[2])
    if folded in map(_folded, FOREIGN) or folded.startswith("[beta]"):
        raise ConfigError(f"{where}: A1111's axis '{name.strip()}' is not supported; there are {_names()}")
    close = get_close_matches(folded, [spelling for row in KINDS.values() for spelling in _spellings(row)], 1)
    hint = f", did you mean '{close[0]}'?" if close else f"; there are {_names()}"
    raise ConfigError(f"{where}: '{name.strip()}' is no axis{hint}")


def _texts(kind: AxisKind, text: str, where: str, first: int) -> tuple[Item, ...]:
    items = read_texts(text, where, first)
    may_be_empty = kind.name in ("sr", "prompt", "negative")
    return tuple(item for item in items if item.text or may_be_empty)


def _by_name(folded: str) -> AxisKind | None:
    return next((kind for kind in KINDS.values() if folded in _spellings(kind)), None)


def _spellings(kind: AxisKind) -> tuple[str, ...]:
    return kind.name, *kind.spellings


def _folded(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())


def _names() -> str:
    return ", ".join(KINDS)
