"""How many ranks a module keeps: a fixed number, or as many as a share of its singular values asks for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.errors import ConfigError

Method = Literal["sv_ratio", "sv_fro", "sv_cumulative"]
METHODS: tuple[Method, ...] = ("sv_ratio", "sv_fro", "sv_cumulative")


@dataclass(frozen=True, kw_only=True)
class RankRule:
    """``rank`` and ``conv_rank`` are upper bounds, for linear layers and for every convolution (1x1 too).

    Without a ``method`` they are what modules get. Otherwise, of the singular values S of up · down:

    =============== ==============================================================
    sv_ratio p      as many as exceed S₁ / p (p ≥ 1)
    sv_cumulative p the fewest whose sum is p of the whole sum (0 < p ≤ 1)
    sv_fro p        the fewest whose Frobenius norm is p of the whole (0 < p ≤ 1)
    =============== ==============================================================

    ``one_more``: one rank beyond that, as sd-scripts counted until its pull request 2194 (March 2026). Raises
    ConfigError for values out of range.
    """

    rank: int
    conv_rank: int
    method: Method | None = None
    param: float | None = None
    one_more: bool = False

    def __post_init__(self) -> None:
        if self.rank < 1 or self.conv_rank < 1:
            raise ConfigError("ranks must be at least 1")
        if (self.method is None) != (self.param is None):
            missing = "--dynamic-param" if self.param is None else "--dynamic-method"
            raise ConfigError(f"--dynamic-method and --dynamic-param go together: {missing} is missing")
        if self.param is None:
            return
        if self.method == "sv_ratio" and not self.param >= 1:
            raise ConfigError(f"--dynamic-param {self.param:g}: sv_ratio takes a number of at least 1")
        if self.method != "sv_ratio" and not 0 < self.param <= 1:
            raise ConfigError(
                f"--dynamic-param {self.param:g}: {self.method} takes a share above 0, at most 1"
            )

    @property
    def largest(self) -> int:
        return max(self.rank, self.conv_rank)

    def bound(self, *, conv: bool) -> int:
        return self.conv_rank if conv else self.rank

    def choose(self, singular: NDArray[Any], *, limit: int, conv: bool) -> int:
        """The rank for a module with these singular values (descending), at least 1.

        ``limit`` is the largest rank the module can have: never more than its file's rank, because what a
        dense SVD shows beyond it is rounding noise.
        """
        if is_dead(singular):
            return 1
        bound = min(self.bound(conv=conv), limit)
        wanted = self.wanted(singular)
        return bound if wanted is None else min(wanted, bound)

    def wanted(self, singular: NDArray[Any]) -> int | None:
        """The rank that the method asks for, without any bound; None without a method."""
        if self.method is None or self.param is None:
            return None
        needed = max(1, _count(self.method, self.param, singular))
        return needed + self.one_more


def error_of_all(modules: Iterable[tuple[float, float]]) -> float:
    """√(Σ‖lost‖² / Σ‖change‖²) of modules, each given as (‖change‖, ‖lost‖ / ‖change‖); 0 where nothing changes."""
    norms = [(norm, norm * error) for norm, error in modules]
    total = math.fsum(norm**2 for norm, _ in norms)
    return math.sqrt(math.fsum(lost**2 for _, lost in norms) / total) if total else 0.0


def is_dead(singular: NDArray[Any]) -> bool:
    """Whether a change of these singular values is zero; such a module keeps one rank."""
    return not np.any(singular)


def _count(method: Method, param: float, singular: NDArray[Any]) -> int:
    if method == "sv_ratio":
        return int(np.count_nonzero(singular > singular[0] / param))
    if method == "sv_cumulative":
        shares, wanted = np.cumsum(singular), param
    else:
        shares, wanted = np.cumsum(np.square(singular)), param**2
    return int(np.searchsorted(shares / shares[-1], wanted)) + 1


@dataclass(frozen=True)
class Candidate:
    """A module for :func:`ranks_for_size`: ``energy`` are its scaled squared singular values, descending.

    Each rank costs ``bytes_per_rank`` bytes; ``bound`` is the most it may get.
    """

    energy: NDArray[Any]
    bytes_per_rank: int
    bound: int


def ranks_for_size(candidates: Sequence[Candidate], budget: int) -> list[int] | None:
    """Ranks that lose the least (in the Frobenius norm over all modules) within ``budget`` bytes.

    Every module keeps one rank; ranks are then taken in the order of energy per byte. None if one rank each
    is already too much.
    """
    ranks = [1] * len(candidates)
    left = budget - sum(c.bytes_per_rank for c in candidates)
    if left < 0:
        return None
    steps = [
        (float(c.energy[k]) / c.bytes_per_rank, index)
        for index, c in enumerate(candidates)
        for k in range(1, min(c.bound, len(c.energy)))
        if c.energy[k] > 0
    ]
    # Stable: of equal steps the earlier module, and within a module the larger value, comes first.
    steps.sort(key=lambda step: -step[0])
    for _, index in steps:
        if candidates[index].bytes_per_rank <= left:
            ranks[index] += 1
            left -= candidates[index].bytes_per_rank
    return ranks
