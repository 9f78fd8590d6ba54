"""What saving in half precision makes zeros of."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lorapipe_engine.files.dtypes import Array
from lorapipe_engine.networks.underflow import Underflow, underflow_of


def underflow_note(values: Iterable[Array]) -> str | None:
    """A line where many of a network's values (float32, any shapes) are too small for float16, and become zero; None
    where they are few."""
    total = Underflow()
    for array in values:
        with np.errstate(over="ignore", under="ignore"):
            total += underflow_of([array], [array.astype(np.float16)])
    return total.line()
