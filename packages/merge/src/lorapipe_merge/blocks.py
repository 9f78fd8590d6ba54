"""Block weights: how strongly each block of the UNet, and the rest of the model, takes part in a merge.

Lists are those of LoRA block weight (12, 17, 20, 26 numbers) and of merge block weighted (25, and 19 for SDXL, the
rest of the model apart); names are BASE, IN00-IN11, MID, OUT00-OUT11.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models.blocks import BASE, REST, TEXT_NAMES
from lorapipe_engine.models.families import get_family


def _numbered(side: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"{side}{number:02d}" for number in numbers)


LISTS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {
        12: (BASE, *_numbered("IN", 4, 5, 7, 8), "MID", *_numbered("OUT", *range(6))),
        17: (BASE, *_numbered("IN", 1, 2, 4, 5, 7, 8), "MID", *_numbered("OUT", *range(3, 12))),
        19: (*_numbered("IN", *range(9)), "MID", *_numbered("OUT", *range(9))),
        20: (BASE, *_numbered("IN", *range(9)), "MID", *_numbered("OUT", *range(9))),
        25: (*_numbered("IN", *range(12)), "MID", *_numbered("OUT", *range(12))),
        26: (BASE, *_numbered("IN", *range(12)), "MID", *_numbered("OUT", *range(12))),
    }
)
# SDXL has nine blocks on each side.
_OF_SDXL, _OF_SD = frozenset({19, 20}), frozenset({17, 25, 26})
_NAMES = frozenset({BASE, "TE", *TEXT_NAMES.values(), REST, *LISTS[26]})


@dataclass(frozen=True)
class BlockWeights:
    """A number for some blocks; those without one take the default of whoever asks."""

    values: Mapping[str, float]

    def of(self, block: str, default: float = 1.0) -> float:
        """The weight of a block, as :func:`block_of` names it."""
        if block in TEXT_NAMES.values():
            return next((self.values[name] for name in (block, "TE", BASE) if name in self.values), default)
        return self.values.get(block, default)


def parse_blocks(text: str, family: str | None = None) -> BlockWeights:
    """Block weights from ``--blocks``: 12, 17, 19, 20, 25 or 26 numbers, or ``IN04=0.5,MID=1,TE=0``.

    ``family`` is that of the model, for lists that only fit another one. Raises ConfigError.
    """
    words = [word for word in re.split(r"[,\s]+", text.strip().strip("[]")) if word]
    if any("=" in word for word in words):
        values = {}
        for word in words:
            name, _, number = word.partition("=")
            name = _block_name(name)
            if name in values:
                raise ConfigError(f"--blocks: {name} is named twice")
            if family is not None and name in _missing(family):
                raise ConfigError(f"--blocks: {word}: {get_family(family).title} has no block {name}")
            values[name] = _number(number, word)
        return BlockWeights(values)
    if len(words) not in LISTS:
        counts = ", ".join(map(str, LISTS))
        raise ConfigError(
            f"--blocks has {len(words)} numbers; lists have {counts}, or name blocks: IN04=0.5,MID=1"
        )
    if (family == "sdxl" and len(words) in _OF_SD) or (family in ("sd1", "sd2") and len(words) in _OF_SDXL):
        fitting = "12, 19 or 20" if family == "sdxl" else "12, 17, 25 or 26"
        raise ConfigError(f"--blocks has {len(words)} numbers, this model's lists have {fitting}")
    return BlockWeights(
        {name: _number(word, word) for name, word in zip(LISTS[len(words)], words, strict=True)}
    )


def _missing(family: str) -> frozenset[str]:
    """The blocks that other families have."""
    if family == "sdxl":
        return frozenset(_numbered("IN", *range(9, 12)) + _numbered("OUT", *range(9, 12)))
    return frozenset({"TE2"}) if family in ("sd1", "sd2") else frozenset()


def _block_name(text: str) -> str:
    name = text.strip().upper()
    if match := re.fullmatch(r"(IN|OUT)(\d)", name):
        name = f"{match[1]}0{match[2]}"
    name = {"M00": "MID", "MID00": "MID", "M": "MID"}.get(name, name)
    if name not in _NAMES:
        raise ConfigError(
            f"--blocks: no block {text!r}; there are BASE, TE, TE1, TE2, IN00-11, MID, OUT00-11, REST"
        )
    return name


def _number(text: str, word: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(f"--blocks: {word!r} is not a number")
    return value
