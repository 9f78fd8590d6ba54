"""UniPC (Zhao et al. 2023) of order 3 with B1, on denoised pictures: a predictor, and a corrector that needs no
evaluation of its own. A generator as those of :mod:`~lorapipe_engine.train.sample.samplers.methods`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from lorapipe_engine.train.sample.samplers.methods import Steps

ORDER = 3


def unipc(x: Tensor, times: Sequence[float], alpha_at: Callable[[float], float]) -> Steps:
    """``times`` falling, fractions allowed; x ends at the last, at which the model is not evaluated.

    ``alpha_at`` gives the cumulative alpha of a time. It yields (x, time) with x of unit variance, and is sent the
    predicted noise.
    """
    levels = [_Level(alpha_at(time)) for time in times]
    steps = len(times) - 1
    known = [levels[0].denoised(x, (yield x, times[0]))]  # the newest first
    for step in range(1, steps + 1):
        order = min(step, ORDER, steps + 1 - step)
        following = levels[step]
        past = levels[step - 1 :: -1][:order]
        terms = _Terms(past, following, known)
        predicted = terms.predicted(x)
        if step == steps:
            return predicted
        denoised = following.denoised(predicted, (yield predicted, times[step]))
        x = terms.corrected(x, denoised)
        known = [denoised, *known][:ORDER]
    return x


class _Level:
    """Scale of the picture, of its noise, and half the logarithm of the ratio of their squares."""

    def __init__(self, alpha: float) -> None:
        self.scale, self.noise = math.sqrt(alpha), math.sqrt(1 - alpha)
        self.half = math.log(self.scale / self.noise)

    def denoised(self, x: Tensor, predicted: Tensor) -> Tensor:
        """The picture in x of this level, by the predicted noise."""
        return (x - predicted * self.noise) / self.scale


class _Terms:
    """One step from the first of ``past`` to ``following``, by as many denoised pictures as there are past levels."""

    def __init__(self, past: Sequence[_Level], following: _Level, known: Sequence[Tensor]) -> None:
        self.start, self.following, self.newest = past[0], following, known[0]
        self.width = self.start.half - following.half  # negative of the step
        ratios = [(level.half - self.start.half) / -self.width for level in past[1:]]
        self.changes = [
            (picture - self.newest) / ratio for picture, ratio in zip(known[1:], ratios, strict=False)
        ]
        self.system = _system([*ratios, 1.0], self.width)

    def predicted(self, x: Tensor) -> Tensor:
        """x of the following level, by what is known."""
        matrix, right = self.system
        count = len(self.changes)
        # With one change the published method takes a half.
        weights = [0.5] if count == 1 else list(np.linalg.solve(matrix[:count, :count], right[:count]))
        return self._added(x, self.changes, weights)

    def corrected(self, x: Tensor, denoised: Tensor) -> Tensor:
        """The same with the denoised picture of the predicted x."""
        matrix, right = self.system
        weights = [0.5] if len(right) == 1 else list(np.linalg.solve(matrix, right))
        return self._added(x, [*self.changes, denoised - self.newest], weights)

    def _added(self, x: Tensor, changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        scale = self.following.scale
        result = x * (self.following.noise / self.start.noise)
        result = result - self.newest * (scale * math.expm1(self.width))
        for change, weight in zip(changes, weights, strict=True):
            result = result - change * (scale * self.width * float(weight))
        return result


def _system(ratios: Sequence[float], width: float) -> tuple[np.ndarray, np.ndarray]:
    """The equations of the weights: powers of the ratios, and what exact integration asks of each power."""
    matrix, right = [], []
    phi, factorial = math.expm1(width) / width - 1, 1
    for power in range(len(ratios)):
        matrix.append([ratio**power for ratio in ratios])
        right.append(phi * factorial / width)
        factorial *= power + 2
        phi = phi / width - 1 / factorial
    return np.array(matrix), np.array(right)
