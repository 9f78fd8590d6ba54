"""A second process that reads and cleans captions while this one writes them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lorapipe_dataset.clean.cleaner import Cleaner
from lorapipe_dataset.clean.inputs import Job
from lorapipe_dataset.clean.options import Options
from lorapipe_dataset.clean.plan import Outcome, Plan, Planner
from lorapipe_dataset.clean.steps.step import Bench

WORTH_IT = 5000  # captions from which starting a process pays
PART = 1024
OWN_PART = 64

# What stands in the way of a caption's file, its root, its picture and its origin, and the reader.
_Row = tuple[str, str | None, str | None, str | None, Any]


def can_help(options: Options, total: int) -> bool:
    """Whether a helper is worth its start, and can be told what to do."""
    if total < WORTH_IT or (os.cpu_count() or 1) < 2:
        return False
    try:
        pickle.dumps(options)
    except (pickle.PicklingError, AttributeError, TypeError):  # a token counter with its vocabulary
        return False
    return True


class Helper:
    """The process, while the block lasts. It ends by itself when this one does, however that comes."""

    def __init__(self, options: Options, cleaner: Cleaner) -> None:
        # A copy of this process is there at once; it is safe while no other thread runs.
        alone = sys.platform == "linux" and threading.active_count() == 1
        context: Any = multiprocessing.get_context("fork" if alone else "spawn")
        self._cleaner = cleaner
        self._pipe, other = context.Pipe()
        bench = cleaner.bench
        # A copy has this process's end too, and would wait for itself.
        work = (other, self._pipe if alone else None, options, dict(bench.counts), bench.captions)
        self._process = context.Process(target=_serve, args=work, daemon=True)
        self._process.start()
        other.close()

    def __enter__(self) -> Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()

    def plan(self, jobs: Sequence[Job], planner: Planner) -> Iterator[list[Plan]]:
        """The plans for jobs in order, in parts. While one is written the next is made; where the helper is not ready
        yet, ``planner`` goes ahead in this process.

        One part is asked for at a time, and its answer taken before the next: neither side can wait for the other.
        """
        asked, at = jobs[:PART], PART
        self._ask(asked)
        while asked:
            own: list[Plan] = []
            while at < len(jobs) and not self._pipe.poll():
                own += map(planner.plan, jobs[at : at + OWN_PART])
                at += OWN_PART
            answers, cut = self._pipe.recv()
            self._cleaner.bench.cut.update(cut)
            done, asked, at = asked, jobs[at : at + PART], at + PART
            self._ask(asked)
            plans = (Plan(Outcome(job, *facts), new) for job, (facts, new) in zip(done, answers, strict=True))
            yield [*plans, *own]

    def _ask(self, jobs: Sequence[Job]) -> None:
        if jobs:
            self._pipe.send([_row(job) for job in jobs])


def _row(job: Job) -> _Row:
    return str(job.file), _text(job.root), _text(job.picture), _text(job.origin), job.reader


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _job(row: _Row) -> Job:
    root, picture, origin = (None if text is None else Path(text) for text in row[1:4])
    return Job(Path(row[0]), root, picture, origin=origin, reader=row[4])


def _serve(
    pipe: Connection, inherited: Connection | None, options: Options, counts: dict[str, int], captions: int
) -> None:
    """Answer until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # that is the other side's to decide
    if inherited is not None:
        inherited.close()
    planner, bench = _planner(options, counts, captions)
    with suppress(EOFError, OSError):
        while True:
            plans = [planner.plan(_job(row)) for row in pipe.recv()]
            answers = [(_facts(plan.outcome), plan.change) for plan in plans]
            pipe.send((answers, bench.cut))
            bench.cut = Counter()


def _planner(options: Options, counts: dict[str, int], captions: int) -> tuple[Planner, Bench]:
    bench = Bench(options.rules, counts, captions)
    return Planner(options, Cleaner(options.rules, bench)), bench


def _facts(outcome: Outcome) -> tuple[str | None, str | None, bool, bool, str | None]:
    return outcome.before, outcome.after, outcome.written, outcome.differs, outcome.error
