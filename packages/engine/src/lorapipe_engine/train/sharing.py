"""The processes that a launcher started with several runs: each takes one run after another, on a card of its own.

They reach each other through the launcher's store, which counts the runs that were taken and has a word for each that
has ended. So none is trained twice, and all processes end alike.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.train.processes import PATIENCE, Processes, launched, own_device

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

    @property
    def is_main(self) -> bool:
        """Whether this is the one that tells what concerns all."""
        return self.index == 0

    def process(self, device: str | None) -> Processes:
        """This process as a run has it that it trains by itself. Raises ConfigError where it has no card of its own."""
        return Processes(device=None if self.count == 1 else own_device(device, self.count))

    def numbers(self, total: int) -> Iterator[int]:
        """The numbers below ``total`` that this process takes: each the next one that no other has taken."""
        while (number := self._store.add("taken", 1) - 1) < total:
            yield number

    def end(self, number: int, word: str) -> None:
        """Have all know how number ``number`` ended."""
        self._store.set(f"ended {number}", word)

    def ended(self, total: int) -> dict[int, str]:
        """How those have ended that have, by number."""
        known = [number for number in range(total) if self._store.check([f"ended {number}"])]
        return {number: self._store.get(f"ended {number}").decode() for number in known}

    def wait(self, place: str) -> None:
        """Go on when all processes have come to ``place``. A signal ends the waiting."""
        self._store.add(place, 1)
        self._look(place, self.count, PATIENCE.total_seconds())
        # The first may hold the store, and takes it along when it ends.
        self._store.add(f"{place}, seen", 1)
        if self.is_main:
            self._look(f"{place}, seen", self.count, LAST_LOOK)

    def _look(self, place: str, count: int, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._store.add(place, 0) < count and time.monotonic() < until:
            time.sleep(LOOK_EVERY)


def share_runs() -> Sharing:
    """The processes that a launcher started with this one. Raises ConfigError where they cannot reach each other."""
    if launched() < 2:
        return Sharing()
    try:
        store, index, count = next(rendezvous("env://", timeout=PATIENCE))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"{launched()} processes cannot be joined: {str(error).splitlines()[0]}") from error
    return Sharing(count, index, PrefixStore("runs", store))
