"""Progress: bars on a terminal; elsewhere nothing, or a line now and then; never when the user asked for quiet.

While a bar is shown, whatever is written to the terminal takes it away first, and it is drawn again below: no line
stands behind a bar, whoever writes it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any

QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
# False where several processes talk on one terminal.
BARS: ContextVar[bool] = ContextVar("bars", default=True)


@contextmanager
def talking_together(*, quiet: bool) -> Iterator[None]:
    """Several processes talk on one terminal: each by whole lines, without bars; ``quiet``: as the user asked."""
    tokens = QUIET.set(quiet), BARS.set(False)
    try:
        yield
    finally:
        QUIET.reset(tokens[0])
        BARS.reset(tokens[1])


class Progress:
    """A bar on stderr, lines, or nothing. Use it as a context manager with :meth:`update`, or iterate it: 0..total-1.

    ``line_every``: seconds between lines where there is no bar; None: no lines.
    """

    def __init__(self, total: int, label: str, unit: str, line_every: float | None = None) -> None:
        self.total = total
        self._bar: Any = None
        self._lines: _Lines | None = None
        if sys.stderr is None or QUIET.get():
            return
        if sys.stderr.isatty() and BARS.get():
            from tqdm import tqdm

            stream = sys.stderr.stream if isinstance(sys.stderr, _AboveBars) else sys.stderr
            self._bar = tqdm(
                total=total or None, desc=label, unit=unit, dynamic_ncols=True, leave=False, file=stream
            )
            _put_lines_above(self._bar)
        elif line_every is not None:
            self._lines = _Lines(total, label, unit, line_every)

    def update(self, count: int = 1, **facts: object) -> None:
        """Go on by ``count``; ``facts`` are shown behind the bar."""
        if self._bar is not None:
            if facts:
                self._bar.set_postfix({name: str(value) for name, value in facts.items()}, refresh=False)
            self._bar.update(count)
        if self._lines is not None:
            self._lines.update(count)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            _bar_is_gone(self._bar)
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


_SHOWN: list[Any] = []  # bars that stand on the terminal


class _AboveBars:
    """A stream to the terminal whose writes take the bars away first and draw them again below; all else is the
    stream's own."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, data: Any) -> Any:
        """Write it, all of it at once: what a buffer held back would come behind the bar that is drawn again."""
        if not data:
            return self.stream.write(data)
        with _cleared(draw=data[-1:] in ("\n", b"\n")):
            count = self.stream.write(data)
            self.stream.flush()
        return count

    def writelines(self, lines: Iterable[Any]) -> None:
        """Write one after another."""
        for line in lines:
            self.write(line)

    @property
    def buffer(self) -> _AboveBars:
        """The stream of bytes below it."""
        return _AboveBars(self.stream.buffer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def _cleared(*, draw: bool) -> Iterator[None]:
    """The bars are gone meanwhile; ``draw``: they stand there again afterwards, below a line that has ended."""
    bars = list(_SHOWN)
    if not bars:
        yield
        return
    with bars[0].get_lock():
        for bar in bars:
            bar.clear(nolock=True)
        bars[0].fp.flush()
        yield
        for bar in bars if draw else ():
            bar.refresh(nolock=True)


def _put_lines_above(bar: Any) -> None:
    _SHOWN.append(bar)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream.isatty() and not isinstance(stream, _AboveBars):
            setattr(sys, name, _AboveBars(stream))


def _bar_is_gone(bar: Any) -> None:
    _SHOWN[:] = [other for other in _SHOWN if other is not bar]  # bars are equal where their rows are
    for name in ("stdout", "stderr") if not _SHOWN else ():
        stream = getattr(sys, name)
        if isinstance(stream, _AboveBars):
            setattr(sys, name, stream.stream)


class _Lines:
    """How far the work is and what time is left, for a log."""

    def __init__(self, total: int, label: str, unit: str, every: float) -> None:
        self._total, self._label, self._unit, self._every = total, label, unit, every
        self._done = 0
        self._began = self._told = time.monotonic()

    def update(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._told < self._every or self._done >= self._total:
            return
        self._told = now
        left = (now - self._began) / self._done * (self._total - self._done)
        line = f"{self._label}: {self._done} of {self._total} {self._unit}, {duration(left)} left"
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """Such as 40 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress(total: int, label: str, unit: str = "it", line_every: float | None = None) -> Progress:
    """Progress of ``total`` units of work; see :class:`Progress`."""
    return Progress(total, label, unit, line_every)
