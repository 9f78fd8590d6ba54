"""Spreading the modules of a network over threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lorapipe_engine.command.process.processors import processors
from lorapipe_engine.command.progress import progress

J = TypeVar("J")
T = TypeVar("T")

MOST_THREADS = 8


def map_in_threads(
    work: Callable[[J], T], jobs: Sequence[J], label: str, *, most: int = MOST_THREADS
) -> list[T]:
    """``work`` on every job, results in the order of the jobs, with a progress bar. The first error ends all.

    ``most`` bounds the threads, for work that takes much memory in each.

    Worth it for work in numpy's LAPACK, which runs without the interpreter lock; the BLAS itself should have
    one thread then.
    """
    with ThreadPoolExecutor(min(processors(), most)) as pool:
        try:
            results = []
            with progress(len(jobs), label, "module") as bar:
                for result in pool.map(work, jobs):
                    results.append(result)
                    bar.update()
            return results
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
