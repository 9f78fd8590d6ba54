"""How a run may end before its time, and what is kept and told then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lorapipe_engine.command.process.terminating import pass_over_sigterm, undisturbed
from lorapipe_engine.errors import OutputError, ProblemFound
from lorapipe_engine.train.plan import Length
from lorapipe_engine.train.processes import ProcessLost
from lorapipe_engine.train.results.results import Results
from lorapipe_engine.train.results.state import State, StateKeeper


@contextmanager
def nothing_lost(
    results: Results, keeper: StateKeeper, state: State, length: Length, say: Callable[[str], None]
) -> Iterator[None]:
    """Keep what was learned on Ctrl-C, where another process has ended and where results cannot be written; name what
    is good where the loss is gone.

    The error goes on, with that told in its line.
    """
    try:
        yield
    except KeyboardInterrupt:
        # The state first: for the file an averaging optimizer moves its weights to and fro, which rounds.
        with undisturbed():
            if state.step:
                keeper.write()
            results.save_interrupted(state.step, state.epoch)
        say(
            f"stopped after step {state.step} of {length.steps}; the same command goes on from there; "
            f"saved: {results.listed()}"
        )
        raise
    except ProcessLost as error:
        if not state.step or not results.writes:
            kept = f"the last state is {keeper.path}" if keeper.path.exists() else "no state was written yet"
            raise ProcessLost(f"{error}; {kept}") from error
        pass_over_sigterm()  # which the launcher sends to those that are left
        keeper.write()
        results.save_interrupted(state.step, state.epoch)
        raise ProcessLost(
            f"{error}; stopped after step {state.step} of {length.steps}, the same command goes on from there; "
            f"saved: {results.listed()}"
        ) from error
    except ProblemFound as error:
        written = keeper.path.exists()
        told = f"the last good state is {keeper.path}" if written else "no state was written yet"
        raise ProblemFound(f"{error}. Saved before and good: {results.listed()}; {told}") from error
    except OutputError as error:
        if not state.step:
            raise
        # So that an epoch whose file could not be written ends once more.
        state.epoch = (state.step - 1) // length.steps_per_epoch
        raise OutputError(f"{error}; {keeper.rescue()}") from error
