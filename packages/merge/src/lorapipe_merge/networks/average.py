"""Averages of the networks that one run saved: what each weighs, and which comes after which.

Weights are those of the changes, not of the factors. ``ema:B`` is the moving average e = B·e + (1 - B)·x that starts
with the first network; ``power:S`` the power function average of Karras et al. (arXiv:2312.02696) whose relative width
is S: the k-th of N weighs (k^(g+1) - (k-1)^(g+1)) / N^(g+1), g the positive root of
g³ + 7g² + (16 - S⁻²)g + 12 - S⁻² = 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lorapipe_engine.errors import ConfigError
from lorapipe_merge.matching import Applied

WIDEST = math.sqrt(1 / 12)  # relative width of the mean, g = 0
_Key = tuple[int, ...]


@dataclass(frozen=True)
class Average:
    """A kind of average: "mean", "ema" or "power", with its number."""

    kind: str
    number: float = 0.0

    def weights(self, count: int) -> list[float]:
        """The weights of ``count`` networks, from the first to the last; their sum is 1."""
        places = range(1, count + 1)
        if self.kind == "mean":
            return [1 / count] * count
        if self.kind == "ema":
            first = self.number ** (count - 1)
            return [first, *((1 - self.number) * self.number ** (count - k) for k in places[1:])]
        power = _exponent(self.number) + 1
        return [(k / count) ** power - ((k - 1) / count) ** power for k in places]


def parse_average(text: str) -> Average:
    """The average that ``--average`` means. Raises ConfigError."""
    kind, colon, number = text.partition(":")
    if kind == "mean" and not colon:
        return Average(kind)
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if kind == "ema" and 0 < value < 1:
        return Average(kind, value)
    if kind == "power" and 0 < value < WIDEST:
        return Average(kind, value)
    raise ConfigError(
        f"--average {text}: give mean, ema:BETA (above 0, below 1) or power:SIGMA_REL (above 0, below {WIDEST:.4f})"
    )


def _exponent(width: float) -> float:
    """The exponent g of the power function of a relative width."""
    inverse = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


def averaged(networks: Sequence[Applied], average: Average) -> tuple[list[Applied], str]:
    """The networks in the order in which they were saved, each with its weight as its ratio; and how that was found.

    Raises ConfigError where nothing tells the order, unless all weigh the same.
    """
    if len(networks) < 2:
        raise ConfigError("--average takes two networks or more")
    ordered, how = _in_order(networks, needed=average.kind != "mean")
    weights = average.weights(len(ordered))
    return [replace(network, ratio=weight) for network, weight in zip(ordered, weights, strict=True)], how


def _in_order(networks: Sequence[Applied], *, needed: bool) -> tuple[list[Applied], str]:
    for what, keys in (
        ("ss_epoch and ss_steps", [_saved_at(network) for network in networks]),
        ("the numbers in their names", [_number_in_name(network) for network in networks]),
    ):
        known = [key for key in keys if key is not None]
        if len(set(known)) == len(networks):
            pairs = sorted(zip(known, networks, strict=True), key=lambda pair: pair[0])
            return [network for _, network in pairs], f"in the order of {what}"
    if needed:
        names = ", ".join(Path(network.name).name for network in networks[:5])
        raise ConfigError(
            f"--average: nothing tells which of {names} comes first: neither ss_epoch and ss_steps nor the numbers in "
            "the names are there, or all different"
        )
    return list(networks), "in the order given"


def _saved_at(network: Applied) -> _Key | None:
    """Epoch and step of a saved network; without a step by the epoch alone."""
    metadata = network.network.metadata
    epoch, step = (_whole(metadata.get(key, "")) for key in ("ss_epoch", "ss_steps"))
    return None if epoch is None else (epoch, -1 if step is None else step)


def _number_in_name(network: Applied) -> _Key | None:
    numbers = re.findall(r"\d+", Path(network.name).stem)
    return (int(numbers[-1]),) if numbers and len(numbers[-1]) < 19 else None


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None
