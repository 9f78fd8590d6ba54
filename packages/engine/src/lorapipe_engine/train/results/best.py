"""Stopping where a run is best: the network of the lowest validation loss is kept, and training ends when it was not
undercut for so many measurements. For other figures see :mod:`lorapipe_engine.train.judging`."""

from __future__ import annotations

from lorapipe_engine.datasets.scan import Dataset
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings.early_stop import LOSS
from lorapipe_engine.train.results.results import Results
from lorapipe_engine.train.results.state import State


class Best:
    """Follows the validation loss. ``patience``: measurements without a lower one that end the run; None: it goes on to
    its end, and nothing is kept."""

    def __init__(self, patience: int | None) -> None:
        self.patience = patience

    def after_measuring(self, loss: float, state: State, epoch: int, results: Results) -> None:
        """Take a validation loss into account; the best network so far is saved. ``epoch``: finished ones."""
        if self.patience is None or state.measured == state.step:
            return
        state.measured = state.step
        if state.by not in ("", LOSS):  # what it was stopped by before cannot be compared with a loss
            state.best, state.worse = [], 0
        state.by = LOSS
        if state.best and not loss < state.best[0]:
            state.worse += 1
            return
        state.best, state.worse = [loss, state.step, epoch], 0
        results.save_best(state.step, epoch)

    def is_over(self, state: State) -> bool:
        """Whether the run ends here."""
        return self.patience is not None and state.worse >= self.patience

    def told(self, state: State, results: Results) -> list[str]:
        """Which network is the best, and whether the run ended for it, in lines; none where that was not asked."""
        if self.patience is None or not state.best:
            return []
        loss, step, epoch = state.best
        best = f"best: {results.best_file}, after step {step:.0f} (epoch {epoch:.0f}): validation loss {loss:.4f}"
        if not self.is_over(state):
            return [best]
        return [
            f"stopped early after step {state.step}: no lower validation loss for {state.worse} measurements; {best}"
        ]


def check_early_stop(patience: int | None, dataset: Dataset) -> None:
    """Raise ConfigError where there is nothing to measure with."""
    if patience is None or dataset.validation:
        return
    count = sum(not dataset.subset_of(row).is_reg for row in dataset.pictures)
    shares = (number / 100 for number in range(10, 100) if round(count * number / 100))
    share = next(shares, None) if count > 1 else None
    ways = (
        "--early_stop_by figures"
        if share is None
        else f"--validation_split {share:g}, or --early_stop_by figures"
    )
    raise ConfigError(
        f"early_stop: goes by the validation loss, and no picture is kept from training; give {ways}"
    )
