"""What half precision makes zeros of."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lorapipe_engine.files.dtypes import Array

WORTH_TELLING = 0.01  # of the values that are not zero


def underflow_note(values: Iterable[Array]) -> str | None:
    """A line where many of a network's values (float32, any shapes) are too small for float16, and become zero; None
    where they are few."""
    nonzero = lost = 0
    for array in values:
        filled = array[array != 0]
        nonzero += filled.size
        with np.errstate(over="ignore", under="ignore"):
            lost += int(np.count_nonzero(filled.astype(np.float16) == 0))
    if not nonzero or lost / nonzero < WORTH_TELLING:
        return None
    return (
        f"{lost:,} of {nonzero:,} values are too small for fp16 and become zero in the file ({lost / nonzero:.0%}): "
        "--save_precision bf16 or float keeps them"
    )
