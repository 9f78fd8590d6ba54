"""How many repeats: formulas on counts alone, no files.

A concept of n pictures repeated r times brings r · n pictures into an epoch. The wish is an epoch of E pictures of
which each concept has its share w / W: r = max(1, round(E · w / (W · n))).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lorapipe_engine.datasets.kinds import Kind

NEAR_SHARE = 0.05  # how far a share may be off before other vectors of repeats are looked at
LENGTH_WEIGHT = 0.1  # how much the epoch's length counts beside the shares


@dataclass(frozen=True)
class Target:
    """The wished length of an epoch, and the range it may lie in."""

    length: int
    low: int
    high: int


def target_of(kind: Kind, per_epoch: int | None) -> Target:
    """The kind's own length and range, or the length asked for; the range then gives way to it."""
    low, high = kind.epoch_range
    length = kind.epoch if per_epoch is None else per_epoch
    return Target(length, min(low, length), max(high, length))


def plain_repeats(counts: Sequence[int], weights: Sequence[float], length: float) -> tuple[int, ...]:
    """r = max(1, round(length · w / (W · n))) for each concept; ``counts`` are 1 or more, ``weights`` above 0."""
    whole = sum(weights)
    return tuple(
        max(1, round(length * weight / (whole * count)))
        for count, weight in zip(counts, weights, strict=True)
    )


def choose_repeats(counts: Sequence[int], weights: Sequence[float], target: Target) -> tuple[int, ...]:
    """Repeats for an epoch of about ``target.length`` pictures in which each concept has the share of its weight.

    The plain formula stands where it gives an epoch inside the range and no share more than 5 points off. Where not,
    the formula's vectors for all lengths in the range are compared by
    Σ w·(r·n/S − w/W)² + 0.1·(S/E − 1)², S = Σ r·n, and the smallest wins.
    """
    plain = plain_repeats(counts, weights, target.length)
    if _is_near(plain, counts, weights, target):
        return plain
    # Between two lengths at which some rounding flips nothing changes, and whole numbers are fine enough.
    vectors = {plain_repeats(counts, weights, length) for length in range(target.low, target.high + 1)}
    return min(sorted(vectors | {plain}), key=lambda vector: _cost(vector, counts, weights, target.length))


def shares(repeats: Sequence[int], counts: Sequence[int]) -> list[float]:
    """Each concept's share of an epoch, 0 to 1."""
    shown = [r * n for r, n in zip(repeats, counts, strict=True)]
    return [value / sum(shown) for value in shown]


def epochs_to(total: int, length: int) -> int:
    """How many epochs of ``length`` pictures show ``total`` pictures."""
    return max(1, math.ceil(total / length))


def _is_near(repeats: Sequence[int], counts: Sequence[int], weights: Sequence[float], target: Target) -> bool:
    length = sum(r * n for r, n in zip(repeats, counts, strict=True))
    wished = [weight / sum(weights) for weight in weights]
    reached = shares(repeats, counts)
    near = all(abs(a - b) <= NEAR_SHARE for a, b in zip(reached, wished, strict=True))
    return near and target.low <= length <= target.high


def _cost(repeats: Sequence[int], counts: Sequence[int], weights: Sequence[float], length: int) -> float:
    whole = sum(weights)
    shown = [r * n for r, n in zip(repeats, counts, strict=True)]
    off = sum(w * (s / sum(shown) - w / whole) ** 2 for w, s in zip(weights, shown, strict=True))
    return off + LENGTH_WEIGHT * (sum(shown) / length - 1) ** 2
