"""Block-wise options: lists of numbers for the blocks of a family's denoiser, as sd-scripts counts them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models.families import FAMILIES, get_family
from lorapipe_engine.models.family import BlockLayout


def layouts() -> dict[str, BlockLayout]:
    """The blocks of every family that has block-wise options, by its name."""
    return {name: family.blocks for name, family in FAMILIES.items() if family.blocks is not None}


def layout_of(family: str) -> BlockLayout:
    """The blocks of a family. Raises ConfigError for one that has no block-wise options."""
    blocks = get_family(family).blocks
    if blocks is None:
        raise ConfigError(
            f"network_args: ranks and rates by block cannot be had for {get_family(family).title}"
        )
    return blocks


def block_of(family: str, name: str) -> int | None:
    """The block of a denoiser's module by its name in a LoRA file; None for names of other parts."""
    return layout_of(family).number(name)


# -------------------------------------------------------------------------------- lists of numbers


_CURVES: Mapping[str, Callable[[float], float]] = {
    "sine": lambda x: math.sin(math.pi * x / 2),
    "cosine": lambda x: math.sin(math.pi * (1 - x) / 2),
    "linear": lambda x: x,
    "reverse_linear": lambda x: 1 - x,
    "zeros": lambda x: 0.0,  # noqa: ARG005 - a curve like the others
}


def block_weights(
    down: str | None, middle: str | None, up: str | None, family: str, zero: float
) -> list[float]:
    """The factor of the rate for each block. Weights of up to ``zero`` count as 0.

    ``down`` and ``up``: numbers with commas between them, or a curve such as ``cosine+.25``; a missing end of a list
    is 1, an empty place in it 0, a missing list 1 everywhere. Raises ConfigError.
    """
    layout = layout_of(family)
    sides = [
        _weights("down_lr_weight", down, layout.side),
        _weights("mid_lr_weight", middle, layout.middle),
        _weights("up_lr_weight", up, layout.side),
    ]
    ends = [1.0] * layout.ends
    return [*ends, *(0.0 if value <= zero else value for side in sides for value in side), *ends]


def _weights(name: str, text: str | None, count: int) -> list[float]:
    if text is None:
        return [1.0] * count
    if re.match(r"\s*[A-Za-z]", text):
        if count < 4:
            raise ConfigError(f"network_args: {name} takes {count} numbers, not '{text}'")
        return _curve(name, text, count)
    values = _numbers(name, text, empty=0.0)
    if len(values) > count:
        raise ConfigError(
            f"network_args: {name} has {len(values)} numbers, but this model has {count} such blocks"
        )
    return [*values, *[1.0] * (count - len(values))]


def _curve(name: str, text: str, count: int) -> list[float]:
    word, sign, offset = text.strip().partition("+")
    if word not in _CURVES:
        raise ConfigError(f"network_args: {name} takes numbers or one of {', '.join(_CURVES)}, not '{word}'")
    base = _numbers(name, offset)[0] if sign else 0.0
    return [_CURVES[word](index / (count - 1)) + base for index in range(count)]


def block_numbers(name: str, text: str, family: str) -> list[float]:
    """A list with a number for each block, such as ``block_dims``. Raises ConfigError."""
    values = _numbers(name, text)
    count = layout_of(family).count
    if len(values) != count:
        raise ConfigError(
            f"network_args: {name} has {len(values)} numbers, but this model has {count} blocks"
        )
    return values


def _numbers(name: str, text: str, empty: float | None = None) -> list[float]:
    numbers: list[float] = []
    for word in text.strip("()[] ").split(","):
        if not word.strip() and empty is not None:
            numbers.append(empty)
            continue
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise ConfigError(f"network_args: {name} takes numbers of 0 or more, not '{word.strip()}'")
        numbers.append(value)
    return numbers


def whole(name: str, values: Sequence[float]) -> list[int]:
    """The values as whole numbers. Raises ConfigError."""
    for value in values:
        if value != int(value):
            raise ConfigError(f"network_args: {name} takes whole numbers, not '{value:g}'")
    return [int(value) for value in values]
