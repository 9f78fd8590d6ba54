"""What half precision makes zeros of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lorapipe_engine.files.dtypes import Array

WORTH_TELLING = 0.01  # of the values that are not zero


@dataclass(frozen=True)
class Underflow:
    """Values that are not zero, and those of them that their type makes zeros of."""

    values: int = 0
    lost: int = 0

    def __add__(self, other: Underflow) -> Underflow:
        return Underflow(self.values + other.values, self.lost + other.lost)

    def line(self) -> str | None:
        """A line for the user where many are lost; None where they are few."""
        if not self.values or self.lost / self.values < WORTH_TELLING:
            return None
        return (
            f"{self.lost:,} of {self.values:,} values are too small for fp16 and become zero in the file "
            f"({self.lost / self.values:.0%}): --save_precision bf16 or float keeps them"
        )


def underflow_of(exact: Iterable[Array], rounded: Iterable[Array]) -> Underflow:
    """Counts of arrays (any shapes) and what they were rounded to, one by one."""
    values = lost = 0
    for one, other in zip(exact, rounded, strict=True):
        filled = one != 0
        values += int(np.count_nonzero(filled))
        lost += int(np.count_nonzero(filled & (other == 0)))
    return Underflow(values, lost)
