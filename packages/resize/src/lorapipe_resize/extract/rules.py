"""How many ranks a module gets, decided by its leading singular values alone wherever they can tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.networks.leading import FIRST_BLOCK, Choose

Array = NDArray[Any]
Method = Literal["signal", "sv_ratio", "sv_fro", "sv_cumulative"]

# Singular values of pure rounding end at 0.96 to 0.995 of the floor; what exceeds it by a twentieth is signal.
ABOVE_FLOOR = 1.05
NO_BOUND = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Rule:
    """``rank`` and ``conv_rank`` are upper bounds, for linear layers and 1x1 kernels, and for larger kernels.

    Without a ``method`` they are what modules get. Otherwise, of the singular values S of the change:

    =============== ==========================================================================
    signal          as many as exceed 1.05 of the floor that rounding of both files makes
    sv_ratio p      as many as exceed S₁ / p (p ≥ 1)
    sv_fro p        the fewest whose Frobenius norm is p of the whole (0 < p ≤ 1)
    sv_cumulative p the fewest whose sum is p of the whole sum (0 < p ≤ 1)
    =============== ==========================================================================

    Raises ConfigError for values out of range.
    """

    rank: int
    conv_rank: int
    method: Method | None = None
    param: float | None = None

    def __post_init__(self) -> None:
        needed = self.method not in (None, "signal")
        if needed and self.param is None:
            raise ConfigError(f"--dynamic-method {self.method} needs a number: --dynamic-param")
        if not needed and self.param is not None:
            raise ConfigError(
                "--dynamic-param is a number for --dynamic-method sv_ratio, sv_fro or sv_cumulative"
            )
        if self.param is None:
            return
        if self.method == "sv_ratio" and not 1 <= self.param < float("inf"):
            raise ConfigError(f"--dynamic-param {self.param:g}: sv_ratio takes a number of at least 1")
        if self.method != "sv_ratio" and not 0 < self.param <= 1:
            raise ConfigError(
                f"--dynamic-param {self.param:g}: {self.method} takes a share above 0, at most 1"
            )

    def bound(self, *, conv: bool) -> int:
        return self.conv_rank if conv else self.rank

    def expected(self, *, conv: bool, limit: int) -> int:
        """The rank that a module will get, as far as it is known before its values are."""
        bound = min(self.bound(conv=conv), limit)
        return bound if self.method is None else min(bound, FIRST_BLOCK)

    def chooser(self, *, conv: bool, limit: int, floor: float | None) -> tuple[Choose, float | None]:
        """What :func:`leading` asks for a module of at most rank ``limit``, and the threshold it counts above."""
        bound = min(self.bound(conv=conv), limit)
        threshold = ABOVE_FLOOR * (floor or 0.0) if self.method == "signal" else None

        def choose(singular: Array, norm: float) -> tuple[int, bool]:
            if self.method is None or not norm:
                return min(bound, singular.size), singular.size >= bound
            count = self._count(singular, norm, threshold, whole=singular.size >= limit)
            if count is None:
                return bound, singular.size >= bound and self.method != "sv_cumulative"
            # No signal is none; a share is always of something.
            return min(count if self.method == "signal" else max(1, count), bound), True

        return choose, threshold

    def _count(self, singular: Array, norm: float, threshold: float | None, *, whole: bool) -> int | None:
        """What the method asks for; None where more values are needed to tell."""
        if self.method == "sv_cumulative":
            if not whole:
                return None
            shares = np.cumsum(singular) / np.sum(singular)
            return min(int(np.searchsorted(shares, self.param or 1.0)) + 1, singular.size)
        if self.method == "sv_fro":
            shares = np.sqrt(np.cumsum(np.square(singular))) / norm
            count = int(np.searchsorted(shares, self.param or 1.0)) + 1
            return min(count, singular.size) if whole or count <= singular.size else None
        least = threshold if threshold is not None else float(singular[0]) / (self.param or 1.0)
        count = int(np.count_nonzero(singular > least))
        return count if whole or count < singular.size else None
