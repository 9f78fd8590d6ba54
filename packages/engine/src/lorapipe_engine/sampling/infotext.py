"""Parameters of a picture as AUTOMATIC1111 writes and reads them, in the form that CivitAI reads too.

    PROMPT
    Negative prompt: NEGATIVE
    Steps: 20, Sampler: Euler a, ..., Lora hashes: "name: 0123456789ab", Version: ...

The last line is parameters only where at least three pairs stand in it. CivitAI asks that it begins with ``Steps: ``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lorapipe_engine.files.hashcache import known_sha256
from lorapipe_engine.files.hashes import data_hash

# A1111's order; what is not here comes behind, as it was given, and LAST at the end.
FIRST = (
    *(
        "Steps",
        "Sampler",
        "Schedule type",
        "CFG scale",
        "Seed",
        "Size",
        "Model hash",
        "Model",
        "VAE hash",
        "VAE",
    ),
    *("Variation seed", "Variation seed strength", "Denoising strength", "Clip skip", "ENSD", "RNG"),
)
_AXES = tuple(
    f"{fixed}{axis} {what}"
    for axis in "XYZ"
    for fixed, what in (("", "Type"), ("", "Values"), ("Fixed ", "Values"))
)
LAST = ("Lora hashes", "TI hashes", "Script", *_AXES, "Version")
# What A1111 takes for a parameter that is missing.
DEFAULTS: Mapping[str, str] = MappingProxyType({"Clip skip": "1", "RNG": "GPU", "Schedule type": "Automatic"})
FEWEST_PAIRS = 3
MOST_LETTERS = 1 << 20  # of a text; what comes behind them is not looked at
MOST_LINE = 1 << 14  # letters of the last line, whose reading may take their square
MODEL_DIGITS = 10
NETWORK_DIGITS = 12

_NEGATIVE = "Negative prompt:"
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True)
class Infotext:
    """What the parameters of a picture say. ``pairs``: the last line's, as texts; a size WxH is Size-1 and Size-2."""

    prompt: str
    negative: str
    pairs: Mapping[str, str]

    def value(self, key: str) -> str | None:
        """The text of a parameter, A1111's default where it is missing."""
        return self.pairs.get(key, DEFAULTS.get(key))

    def written(self, key: str) -> str | None:
        """The text of a parameter as it was written, sizes as WxH; None where it is missing."""
        sides = self.pairs.get(f"{key}-1"), self.pairs.get(f"{key}-2")
        return f"{sides[0]}x{sides[1]}" if None not in sides else self.pairs.get(key)


def write_infotext(prompt: str, negative: str, pairs: Mapping[str, Any]) -> str:
    """The text for a picture. ``pairs`` in any order; None is left out, numbers are written as Python prints them."""
    rank = {key: (place, 0) for place, key in enumerate(FIRST)}
    rank |= {key: (len(FIRST) + 1, place) for place, key in enumerate(LAST)}
    ordered = sorted(pairs.items(), key=lambda pair: rank.get(pair[0], (len(FIRST), 0)))
    words = [
        key if key == value else f"{key}: {_quoted(value)}" for key, value in ordered if value is not None
    ]
    middle = f"\n{_NEGATIVE} {negative}" if negative else ""
    return f"{prompt}{middle}\n{', '.join(words)}".strip()


def read_infotext(text: str) -> Infotext:
    """Read the parameters of a picture, as A1111 reads what is pasted: every line is trimmed, empty values are lost.

    A text of another kind is a prompt with nothing else, and so is a last line that is longer than any program writes.
    Nothing is an error.
    """
    *lines, last = text.strip()[:MOST_LETTERS].split("\n")
    pairs = _PAIR.findall(last) if len(last) <= MOST_LINE else []
    if len(pairs) < FEWEST_PAIRS:
        lines, pairs = [*lines, last], []
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in map(str.strip, lines):
        if line.startswith(_NEGATIVE):
            part, line = negative, line.removeprefix(_NEGATIVE).strip()
        part.append(line)
    return Infotext(_joined(prompt), _joined(negative), MappingProxyType(_values(pairs)))


def _joined(lines: Sequence[str]) -> str:
    """Lines as one text, which empty ones in front do not make longer."""
    return "\n".join(dropwhile(lambda line: not line, lines))


def lora_hashes(networks: Sequence[tuple[str, str]]) -> str | None:
    """The value of ``Lora hashes`` of (name as in the prompt's tag, hash) pairs; None without any.

    Each name stands once, without the letters that separate.
    """
    rows = {name.replace(":", "").replace(",", ""): digits[:NETWORK_DIGITS] for name, digits in networks}
    return ", ".join(f"{name}: {digits}" for name, digits in rows.items()) or None


def network_hash(path: Path) -> str:
    """The twelve digits by which A1111 and CivitAI (AutoV3) know a network: of what follows a safetensors file's
    header, of the whole file otherwise. Raises InputError.
    """
    digits = data_hash(path) if path.suffix.lower() == ".safetensors" else known_sha256(path)
    return digits[:NETWORK_DIGITS]


def model_hash(path: Path) -> str:
    """The ten digits by which A1111 and CivitAI (AutoV2) know a checkpoint or a VAE. Raises InputError."""
    return known_sha256(path)[:MODEL_DIGITS]


def _quoted(value: Any) -> str:
    """JSON where A1111 has it, and where a text begins with a quote: left as it is, it would not be read again."""
    text = str(value)
    needs = text.lstrip().startswith('"') or any(mark in text for mark in ",:\n")
    return json.dumps(text, ensure_ascii=False) if needs else text


def _values(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    values: dict[str, str] = {}
    for key, raw in pairs:
        value = _unquoted(raw)
        size = _SIZE.fullmatch(value)
        if size:
            values |= {f"{key}-1": size[1], f"{key}-2": size[2]}
        elif value:
            values[key] = value
    return values


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        text = json.loads(value)
    except ValueError:
        return value
    return text if isinstance(text, str) else value
