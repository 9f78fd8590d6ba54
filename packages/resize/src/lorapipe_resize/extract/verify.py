"""The proof of an extraction: the written LoRA is read again, added to the base and held against what it came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorapipe_engine.errors import ProblemFound
from lorapipe_engine.files.tensorfile import WeightFile
from lorapipe_engine.files.threads import map_in_threads
from lorapipe_resize.extract.extraction import MOST_THREADS, Extracted, whole_error
from lorapipe_resize.extract.sources import Source

# How far the error read back may be from the one computed: sums of float32 numbers in another order.
SLACK = 1e-3
ROUNDING = 1e-5


@dataclass(frozen=True)
class Verified:
    """‖change - LoRA‖ / ‖change‖ as read back: of all modules, of the worst one, and its name."""

    error: float
    worst: float
    name: str
    modules: int


def verify(file: WeightFile, source: Source, done: Extracted) -> Verified:
    """Merge the LoRA back, module by module, in float32.

    Raises ProblemFound where the file does not say what was computed.
    """
    rows = map_in_threads(
        lambda number: _lost(file, source, number), done.numbers, "verifying", most=MOST_THREADS
    )
    lost = math.sqrt(math.fsum(row[0] for row in rows))
    whole = math.sqrt(math.fsum(row[1] for row in rows))
    _check(rows, done)
    worst = max(range(len(rows)), key=lambda i: rows[i][0] / rows[i][1])
    return Verified(
        lost / whole, math.sqrt(rows[worst][0] / rows[worst][1]), done.modules[worst].name, len(rows)
    )


def _lost(file: WeightFile, source: Source, number: int) -> tuple[float, float]:
    """‖change - LoRA‖² and ‖change‖² of a module."""
    name = source.jobs[number].name
    up, down = file.read(f"{name}.lora_up.weight"), file.read(f"{name}.lora_down.weight")
    alpha = float(file.read(f"{name}.alpha").reshape(()))
    up, down = up.reshape(up.shape[0], -1), down.reshape(down.shape[0], -1)
    change = source.matrix(number)
    whole = float(np.sum(np.square(change, dtype=np.float64)))
    scaled = (up * np.float32(alpha / down.shape[0])).astype(change.dtype, copy=False)
    lost = change - scaled @ down.astype(change.dtype, copy=False)
    return float(np.sum(np.square(lost, dtype=np.float64))), whole


def _check(rows: Sequence[tuple[float, float]], done: Extracted) -> None:
    for (lost, whole), module in zip(rows, done.modules, strict=True):
        error = math.sqrt(lost / whole)
        if abs(error - module.error) > SLACK * module.error + ROUNDING:
            raise ProblemFound(
                f"module {module.name}: read back, its error is {error:.4g}, computed were {module.error:.4g}"
            )
    error = math.sqrt(math.fsum(row[0] for row in rows) / math.fsum(row[1] for row in rows))
    if abs(error - whole_error(done.modules)) > SLACK * error + ROUNDING:
        raise ProblemFound(
            f"read back, the error is {error:.4g}, computed were {whole_error(done.modules):.4g}"
        )
