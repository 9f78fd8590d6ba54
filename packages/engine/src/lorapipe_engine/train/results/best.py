"""Stopping where a run is best: the network of the lowest validation loss is kept, and training ends when it was not
undercut for so many measurements."""

from __future__ import annotations

from lorapipe_engine.datasets.scan import Dataset
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.train.results.results import Results
from lorapipe_engine.train.results.state import State


class Best:
    """Follows the validation loss. ``patience``: measurements without a lower one that end the run; None: it goes on to
    its end, and nothing is kept."""

    def __init__(self, patience: int | None) -> None:
        self.patience = patience

    def after_measuring(self, loss: float, state: State, results: Results) -> None:
        """Take a validation loss into account; the best network so far is saved."""
        if self.patience is None or state.measured == state.step:
            return
        state.measured = state.step
        if state.best and not loss < state.best[0]:
            state.worse += 1
            return
        state.best, state.worse = [loss, state.step, state.epoch], 0
        results.save_best(state.step, state.epoch)

    def is_over(self, state: State) -> bool:
        """Whether the run ends here."""
        return self.patience is not None and state.worse >= self.patience

    def told(self, state: State, results: Results) -> str | None:
        """Which network is the best, and whether the run ended for it; None where that was not asked."""
        if self.patience is None or not state.best:
            return None
        loss, step, epoch = state.best
        best = f"best: {results.best_file}, after step {step:.0f} (epoch {epoch:.0f}): validation loss {loss:.4f}"
        if not self.is_over(state):
            return best
        return f"stopped early after step {state.step}: no lower validation loss for {state.worse} measurements; {best}"


def check_early_stop(patience: int | None, dataset: Dataset) -> None:
    """Raise ConfigError where there is nothing to measure with."""
    if patience is not None and not dataset.validation:
        raise ConfigError(
            "early_stop: goes by the validation loss, and no picture is kept from training; give --validation_split 0.1"
        )
