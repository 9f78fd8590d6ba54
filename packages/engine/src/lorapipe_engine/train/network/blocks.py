"""The blocks of a UNet as block-wise options count them, and the lists of numbers for them.

sd-scripts counts 25 blocks in SD 1.x and 2.x: 12 down, 1 in the middle, 12 up, where three numbers make a level (two
layers and the sampler) and block 0 has no module. SDXL has 23: the embeddings (0), 9 ``input_blocks``, 3 in the middle,
9 ``output_blocks``, and the output (22).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lorapipe_engine.errors import ConfigError


@dataclass(frozen=True)
class BlockLayout:
    """How many blocks a family's UNet has on each side and in the middle; ``ends``: one more before and after."""

    side: int
    middle: int
    ends: int

    @property
    def count(self) -> int:
        """All of them, and so the length of ``block_dims``."""
        return 2 * (self.side + self.ends) + self.middle


LAYOUTS: Mapping[str, BlockLayout] = {
    "sd1": BlockLayout(side=12, middle=1, ends=0),
    "sd2": BlockLayout(side=12, middle=1, ends=0),
    "sdxl": BlockLayout(side=9, middle=3, ends=1),
}


def block_of(family: str, name: str) -> int | None:
    """The block of a UNet module by its name in a LoRA file; None for names of other parts."""
    layout = LAYOUTS[family]
    if family == "sdxl":
        found = re.match(r"lora_unet_(input|middle|output)_(?:blocks_|block_)(\d+)_", name)
        first = {"input": 1, "middle": 1 + layout.side, "output": 1 + layout.side + layout.middle}
        return first[found[1]] + int(found[2]) if found else None
    if name.startswith("lora_unet_mid_block_"):
        return layout.side
    found = re.match(
        r"lora_unet_(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)", name
    )
    if found is None:
        return None
    layer = int(found[4]) if found[3] in ("resnets", "attentions") else 2
    return (1 if found[1] == "down" else layout.side + layout.middle) + 3 * int(found[2]) + layer


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
    layout = LAYOUTS[family]
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
    count = LAYOUTS[family].count
    if len(values) != count:
        raise ConfigError(
            f"network_args: {name} has {len(values)} numbers, but this model has {count} blocks"
        )
    return values


def _numbers(name: str, text: str, empty: float | None = None) -> list[float]:
    found: list[float] = []
    for word in text.strip("()[] ").split(","):
        if not word.strip() and empty is not None:
            found.append(empty)
            continue
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise ConfigError(f"network_args: {name} takes numbers of 0 or more, not '{word.strip()}'")
        found.append(value)
    return found


def whole(name: str, values: Sequence[float]) -> list[int]:
    """The values as whole numbers. Raises ConfigError."""
    for value in values:
        if value != int(value):
            raise ConfigError(f"network_args: {name} takes whole numbers, not '{value:g}'")
    return [int(value) for value in values]
