"""The processes that a launcher started with several runs: each takes one run after another, on a card of its own.

They reach each other through the launcher's store, which counts the runs that were taken and has a word for each that
has ended. So none is trained twice, and all processes end alike.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from lorapipe_engine.command.process.launched import launched
from lorapipe_engine.errors import ProblemFound
from lorapipe_engine.train.meeting import meet
from lorapipe_engine.train.processes import Processes, own_device

GONE = "the launcher has ended; the same command goes on with the runs that are left"
LOOK_EVERY = 0.2  # seconds between looks whether the others have come
LAST_LOOK = 10.0  # seconds in which the others are to have seen that all have come, before the store may go


class _Here:
    """The store of one process."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._words: dict[str, bytes] = {}

    def add(self, key: str, amount: int) -> int:
        self._numbers[key] = self._numbers.get(key, 0) + amount
        return self._numbers[key]

    def set(self, key: str, word: str) -> None:
        self._words[key] = word.encode()

    def get(self, key: str) -> bytes:
        return self._words[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self._words for key in keys)


@dataclass
class Sharing:
    """``count`` processes, of which this is number ``index``."""

    count: int = 1
    index: int = 0
    _store: Any = field(default_factory=_Here, repr=False)
    # How those ended of which this process knows.
    _known: dict[int, str] = field(default_factory=dict, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this is the one that tells what concerns all."""
        return self.index == 0

    def process(self, device: str | None) -> Processes:
        """This process as a run has it that it trains by itself. Raises ConfigError where it has no card of its own."""
        return Processes(device=None if self.count == 1 else own_device(device, self.count))

    def numbers(self, total: int) -> Iterator[int]:
        """The numbers below ``total`` that this process takes: each the next one that no other has taken."""
        while (number := self._add("taken", 1) - 1) < total:
            yield number

    def end(self, number: int, word: str) -> None:
        """Have all know how number ``number`` ended."""
        self._known[number] = word
        with suppress(ProblemFound), _reached():  # without the store the next number ends the work
            self._store.set(f"ended {number}", word)

    def ended(self, total: int) -> dict[int, str]:
        """How those have ended that have, by number; where the launcher has ended, those of this process."""
        with suppress(ProblemFound), _reached():
            for number in range(total):
                if self._store.check([f"ended {number}"]):
                    self._known[number] = self._store.get(f"ended {number}").decode()
        return dict(self._known)

    def wait(self, place: str) -> None:
        """Go on when all processes have come to ``place``, however long another trains yet. A signal ends the waiting.

        Nor does a process wait for one that died: the launcher ends them all.
        """
        self._add(place, 1)
        self._look(place, math.inf)
        # The first may hold the store, and takes it along when it ends.
        self._add(f"{place}, seen", 1)
        if self.is_main:
            self._look(f"{place}, seen", LAST_LOOK)

    def _look(self, place: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._add(place, 0) < self.count and time.monotonic() < until:
            time.sleep(LOOK_EVERY)

    def _add(self, key: str, amount: int) -> int:
        with _reached():
            return int(self._store.add(key, amount))


@contextmanager
def _reached() -> Iterator[None]:
    """Raise ProblemFound where the store is gone."""
    try:
        yield
    except RuntimeError as error:
        raise ProblemFound(GONE) from error


def share_runs() -> Sharing:
    """The processes that a launcher started with this one. Raises ConfigError where they cannot reach each other."""
    if launched() < 2:
        return Sharing()
    met = meet()
    return Sharing(met.count, met.index, met.store)
