"""Progress bars: on a terminal only, and never when the user asked for quiet."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextvars import ContextVar
from types import TracebackType
from typing import Any

QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


class Progress:
    """A bar on stderr, or nothing. Use it as a context manager with :meth:`update`, or iterate it: 0..total-1."""

    def __init__(self, total: int, label: str, unit: str) -> None:
        self.total = total
        self._bar: Any = None
        if sys.stderr is not None and sys.stderr.isatty() and not QUIET.get():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=label, unit=unit, dynamic_ncols=True, leave=False)

    def update(self, count: int = 1, **facts: object) -> None:
        """Go on by ``count``; ``facts`` are shown behind the bar."""
        if self._bar is not None:
            if facts:
                self._bar.set_postfix({name: str(value) for name, value in facts.items()}, refresh=False)
            self._bar.update(count)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def __iter__(self) -> Iterator[int]:
        for index in range(self.total):
            yield index
            self.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def progress(total: int, label: str, unit: str = "it") -> Progress:
    """A progress bar for ``total`` units of work."""
    return Progress(total, label, unit)
