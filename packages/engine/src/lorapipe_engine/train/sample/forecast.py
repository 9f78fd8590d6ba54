"""How long the pictures of a plan will take, and in how much memory: told after the first steps, by what they took."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lorapipe_engine.command.progress import duration
from lorapipe_engine.sampling.cells import Cell
from lorapipe_engine.sampling.noise.samplers import SAMPLERS, count_evaluations
from lorapipe_engine.train.sample.draw import Predict

DECODING = 1.5  # evaluations that decoding a picture is about worth, by its arithmetic
SETTLING = 3  # evaluations of a card before the measured ones: plain, recorded, replayed
MEASURED = 2

Say = Callable[[str], None]


class Forecast:
    """Measures evaluations of the first batch and says, once, how long ``cells`` will take."""

    def __init__(self, cells: Sequence[Cell], say: Say) -> None:
        self._say = say
        self._pictures = len(cells)
        self._work = sum(_work(cell) for cell in cells)
        self._is_told = not cells

    def watch(self, predict: Predict, cells: Sequence[Cell]) -> Predict:
        """The evaluations of one batch, measured until the forecast is told."""
        if self._is_told:
            return predict
        first, calls, began = cells[0], 0, 0.0

        def watched(latents: Tensor, moment: Tensor) -> Tensor:
            nonlocal calls, began
            settling, measured = (SETTLING, MEASURED) if latents.is_cuda else (0, 1)
            if calls == settling:
                _wait(latents)
                began = time.perf_counter()
            answer = predict(latents, moment)
            calls += 1
            if calls == settling + measured and not self._is_told:
                _wait(latents)
                seconds = (time.perf_counter() - began) / measured
                self._tell(seconds / (len(cells) * first.width * first.height) * self._work, latents)
            return answer

        return watched

    def _tell(self, seconds: float, latents: Tensor) -> None:
        self._is_told = True
        counted = f"{self._pictures:,} pictures" if self._pictures > 1 else "one picture"
        self._say(f"about {duration(seconds)} for {counted}, in {_memory(latents)}")


def _work(cell: Cell) -> float:
    """Of a picture: pixels times evaluations."""
    evaluations = count_evaluations(SAMPLERS[cell.sampler], cell.steps)
    return (evaluations + DECODING) * cell.width * cell.height


def _wait(latents: Tensor) -> None:
    if latents.is_cuda:
        torch.cuda.synchronize(latents.device)


def _memory(latents: Tensor) -> str:
    """What is taken until now: of the card, or of the machine by this process."""
    if latents.is_cuda:
        free, whole = torch.cuda.mem_get_info(latents.device)
        return f"{(whole - free) / 2**30:.1f} of the card's {whole / 2**30:.1f} GiB"
    try:
        import resource
    except ImportError:  # Windows
        return "memory that is not known here"
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, else KiB
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.1f} GiB"
