"""What rounding to a smaller number type takes of a network: values that become zero, and shares of a change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from lorapipe_engine.command.text import counted, printable
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.dtypes import Array

WORTH_TELLING = 0.01  # of the values that are not zero, or of a module's change
SMALLEST_FULL = 2.0**-14  # below, numbers of fp16 have fewer digits the smaller they are
_NAMES = {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}


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


@dataclass(frozen=True)
class Loss:
    """What a number type takes of one module. ``share``: ‖lost‖ / ‖change‖, of the weight's change or of the bias',
    the larger; ``underflow``: the values that become zero.
    """

    module: str
    share: float
    underflow: Underflow = field(default_factory=Underflow)


def rounding_notes(losses: Iterable[Loss]) -> list[str]:
    """A line where modules lose much of their change to rounding; else one where many values become zero."""
    by_module: dict[str, Loss] = {}
    for loss in losses:
        known = by_module.get(loss.module, Loss(loss.module, 0.0))
        by_module[loss.module] = Loss(
            loss.module, max(known.share, loss.share), known.underflow + loss.underflow
        )
    losses = list(by_module.values())
    losing = [loss for loss in losses if loss.share > WORTH_TELLING]
    if not losing:
        line = sum((loss.underflow for loss in losses), Underflow()).line()
        return [line] if line else []
    worst = max(losing, key=lambda loss: loss.share)
    # Without numbers that are too small, factors cancel each other, and bf16 has fewer digits than fp16.
    small = all(loss.underflow.lost for loss in losing)
    why, keeps = ("to numbers too small for fp16", "bf16 or fp32") if small else ("to rounding", "fp32")
    its, them = ("its", "it") if len(losing) == 1 else ("their", "them")
    return [
        f"{counted(len(losing), 'module', 'lose')} more than {WORTH_TELLING:.0%} of {its} change {why}, "
        f"{printable(worst.module)} {worst.share:.0%}: --save-precision {keeps} keeps {them}"
    ]


def check_kept(label: str, exact: Iterable[Array], rounded: Iterable[Array], dtype: str) -> None:
    """Raise InputError where the type makes zeros of a whole tensor, of which a module's change is the product."""
    for one, other in zip(exact, rounded, strict=True):
        if np.any(one) and not np.any(other):
            raise InputError(
                f"module {label}: its values are too small for {_NAMES.get(dtype, dtype)}, which makes zeros of "
                "them all; give --save-precision bf16 or fp32"
            )


def lacks_digits(values: Array) -> bool:
    """Whether fp16 has not all its digits for values (any shape) of this size."""
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) < SMALLEST_FULL


def tensor_loss(module: str, exact: Array, rounded: Array) -> Loss:
    """What a type takes of a single tensor (any shape)."""
    one, other = exact.astype(np.float64, copy=False), rounded.astype(np.float64, copy=False)
    size, lost = float(np.linalg.norm(one)), float(np.linalg.norm(one - other))
    return Loss(module, lost / size if size else 0.0, underflow_of([one], [other]))
