"""How the processes that a launcher started find each other.

Nobody comes where the variables of a launcher stand in an environment without one, as in some containers. So a process
says for whom it waits, and a signal ends the waiting.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from lorapipe_engine.command.process.launched import UNSET, launched, process_number
from lorapipe_engine.command.tool import show
from lorapipe_engine.errors import ConfigError

MEETING = timedelta(minutes=10)  # that the processes may start apart
SOON = 10.0  # seconds until the user is told who is waited for
LOOK_EVERY = 0.1  # seconds between looks


@dataclass(frozen=True)
class Met:
    """All ``count`` processes of a launcher, of which this is number ``index``, and the ``store`` that they share."""

    count: int
    index: int
    store: Any

    def words(self, patience: timedelta) -> dict[str, Any]:
        """What torch makes a group of them from, in which one waits as long as ``patience`` for another."""
        self.store.set_timeout(patience)
        return {"store": self.store, "rank": self.index, "world_size": self.count, "timeout": patience}


def meet() -> Met:
    """Wait until all processes of the launcher have come.

    Raises ConfigError where one does not within :data:`MEETING`, or the environment does not say where they meet.
    """
    count = launched()
    # Torch says less plainly what is wrong with these.
    process_number()
    port = os.environ.get("MASTER_PORT", "0")
    if not port.isdecimal() or int(port) >= 1 << 16:
        raise ConfigError(f"MASTER_PORT: {port!a} in the environment is no port; {UNSET}")
    # Here, since a single process needs none of it, and some builds of torch have none.
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]
    from torch.distributed.rendezvous import rendezvous

    told = _Told(count)
    try:
        store, index, count = _beside(lambda: next(rendezvous("env://", timeout=MEETING)), told)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(_apart(count, str(error).splitlines()[0])) from error
    # A launcher that starts its processes anew may keep its store.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    met = Met(count, index, PrefixStore(f"attempt {attempt}", store))
    _await_all(met, told)
    return met


def _await_all(met: Met, told: _Told) -> None:
    met.store.add("come", 1)
    until = time.monotonic() + MEETING.total_seconds()
    while (come := met.store.add("come", 0)) < met.count:
        if time.monotonic() > until:
            raise ConfigError(_apart(met.count, f"only {come} came"))
        if met.index == 0:
            told.look()
        time.sleep(LOOK_EVERY)


def _apart(count: int, why: str) -> str:
    return f"{count} processes of a launcher cannot be joined: {why}; {UNSET}"


class _Told:
    """Says once that ``count`` processes are waited for, as soon as it has taken long."""

    def __init__(self, count: int) -> None:
        self._count, self._when = count, time.monotonic() + SOON

    def look(self) -> None:
        if time.monotonic() > self._when:
            self._when = float("inf")
            # Whoever waits: the first, which talks, may be the one that is missing.
            show(
                f"waiting until all {self._count} processes of a launcher are here (Ctrl-C ends the wait); {UNSET}",
                err=True,
            )


def _beside(work: Callable[[], Any], told: _Told) -> Any:
    """What ``work`` returns or raises, in a thread: where it waits, no signal is seen."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(LOOK_EVERY)
        told.look()
    if errors:
        raise errors[0]
    return results[0]
