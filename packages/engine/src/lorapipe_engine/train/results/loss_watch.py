"""The losses of a run as they come: the mean that is shown, and whether training has come apart.

A loss of one step says little: it depends on the timesteps drawn, and swings by a factor of a hundred in a healthy run.
"""

from __future__ import annotations

import math

from lorapipe_engine.errors import ProblemFound
from lorapipe_engine.train.results.state import State

WINDOW = 20  # steps that are judged together
TIMES = 10.0  # an exploded mean is this often the one at the start ...
LEAST = 1.0  # ... and above this: predicting nothing at all gives about 1, before weights
KEPT = 2000  # losses at most that the mean is taken of


def follow(state: State, loss: float, steps_per_epoch: int) -> None:
    """Take a step's loss into account. Raises ProblemFound for one that is not finite, or where it has exploded.

    ``state.loss`` becomes the mean of the last epoch's worth of steps (sd-scripts' loss/average).
    """
    if len(state.first) < WINDOW:
        state.first.append(loss)
    state.recent = [*state.recent, loss][-min(max(steps_per_epoch, WINDOW), KEPT) :]
    last = state.recent[-steps_per_epoch:]
    state.loss = math.fsum(last) / len(last)
    if ratio(state) > TIMES:
        raise ProblemFound(
            f"step {state.step}: the loss has exploded: {_late(state):.3g} on average over the last {WINDOW} steps, "
            f"{_early(state):.3g} over the first; lower the learning rate"
        )


def ratio(state: State) -> float:
    """How often the mean of late is that of the start; 0 where it is too early to tell, or low enough anyway."""
    if len(state.recent) < WINDOW or state.step < 2 * WINDOW or _late(state) <= LEAST:
        return 0.0
    return _late(state) / max(_early(state), 1e-12)


def is_calm(state: State) -> bool:
    """Whether a state written now is a good one to go back to."""
    return ratio(state) < TIMES / 3 and (
        not state.recent or state.recent[-1] < max(LEAST, TIMES * _early(state))
    )


def _late(state: State) -> float:
    return math.fsum(state.recent[-WINDOW:]) / len(state.recent[-WINDOW:])


def _early(state: State) -> float:
    return math.fsum(state.first) / max(1, len(state.first))
