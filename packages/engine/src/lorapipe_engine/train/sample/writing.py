"""Pictures brought to the disk beside the drawing: encoded and written in threads, told in their order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

MOST_WAITING = 64  # pictures that are drawn and not written yet
MOST_THREADS = 4

Work = Callable[[], None]


class Writer:
    """Runs jobs in threads; each job's ``after`` runs in the caller's thread, in the order of the jobs.

    A job's exception is raised at the next :meth:`add` or at the end of the block; later jobs that are not under way
    are dropped then.
    """

    def __init__(self) -> None:
        threads = max(1, min(MOST_THREADS, (os.cpu_count() or 1) - 1))
        self._pool = ThreadPoolExecutor(threads, "pictures")
        self._waiting: deque[tuple[Future[None], Work]] = deque()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            try:
                self._pool.shutdown(wait=True, cancel_futures=True)
            except KeyboardInterrupt:
                # What is being written is written, also where Ctrl-C comes just here.
                self._pool.shutdown(wait=True)
                raise

    def add(self, work: Work, after: Work) -> None:
        """Have ``work`` done, then ``after``. Waits where too many are under way."""
        self._waiting.append((self._pool.submit(work), after))
        while self._waiting and (self._waiting[0][0].done() or len(self._waiting) > MOST_WAITING):
            self._next()

    def finish(self) -> None:
        """Wait for all jobs."""
        while self._waiting:
            self._next()

    def _next(self) -> None:
        future, after = self._waiting.popleft()
        future.result()
        after()
