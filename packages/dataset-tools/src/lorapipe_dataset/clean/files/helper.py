"""A second process that reads and cleans captions while this one writes them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lorapipe_dataset.clean.captions.cleaner import Cleaner
from lorapipe_dataset.clean.captions.steps.step import Bench
from lorapipe_dataset.clean.files.inputs import Job
from lorapipe_dataset.clean.files.plan import Outcome, Plan, Planner
from lorapipe_dataset.clean.files.textfile import encode
from lorapipe_dataset.clean.options import Options
from lorapipe_engine.changes.filebytes import Stamp
from lorapipe_engine.changes.journal import Change
from lorapipe_engine.pictures.captions import decode_caption

WORTH_IT = 5000  # captions from which starting a process pays
PART = 1024
AHEAD = 2  # parts that are asked for at a time
OWN_PART = 64

# A caption's file, its root, its picture and its origin, and the reader.
_Row = tuple[str, str | None, str | None, str | None, Any]
# An outcome's facts, why it was left, and the change. Where a file is replaced: the file's bytes in place of its text,
# and its stamp, as bare tuples, for objects take several times as long to send.
_Answer = tuple[str | bytes | None, str | None, bool, bool, str | None, str | None, Any]


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
        self._encoding = options.encoding
        self._pipe, other = context.Pipe()
        bench = cleaner.bench
        if alone:
            gc.freeze()  # what is looked through for waste would be copied
        # A copy has this process's end too, and would wait for itself.
        work = (other, self._pipe if alone else None, options, dict(bench.counts), bench.captions)
        self._process = context.Process(target=_serve, args=work, daemon=True)
        self._process.start()
        other.close()
        self._numbers = count()
        self._answers: queue.SimpleQueue[tuple[int, list[_Answer], Counter[str]] | None] = queue.SimpleQueue()
        self._receiver = threading.Thread(target=self._receive, daemon=True)
        self._receiver.start()

    def __enter__(self) -> Helper:
        self._interval = sys.getswitchinterval()
        sys.setswitchinterval(5e-4)  # the receiver has next to nothing to do, but must not wait for that
        return self

    def __exit__(self, *_: object) -> None:
        sys.setswitchinterval(self._interval)
        with suppress(OSError):
            self._pipe.send(None)
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
        self._receiver.join(5)
        self._pipe.close()

    def _receive(self) -> None:
        """Take answers as they come, so that the process need not wait to give them."""
        with suppress(EOFError, OSError):
            while True:
                self._answers.put(self._pipe.recv())
        self._answers.put(None)

    def plan(self, jobs: Sequence[Job], planner: Planner) -> Iterator[list[Plan]]:
        """The plans for jobs in order, in parts. While some are written the next are made; where the helper is not
        ready yet, ``planner`` goes ahead in this process.
        """
        parts: deque[_Part] = deque()
        at = 0
        while at < len(jobs) or parts:
            for _ in range(AHEAD - sum(part.plans is None for part in parts)):
                if at < len(jobs):
                    parts.append(self._ask(jobs[at : at + PART]))
                    at += PART
            while at < len(jobs) and parts[0].plans is None and self._answers.empty():
                own = jobs[at : at + OWN_PART]
                parts.append(_Part(own, [*map(planner.plan, own)]))
                at += OWN_PART
            part = parts.popleft()
            plans = self._answer(part) if part.plans is None else part.plans
            yield plans if plans is not None else [*map(planner.plan, part.jobs)]

    def _ask(self, jobs: Sequence[Job]) -> _Part:
        part = _Part(jobs, number=next(self._numbers))
        with suppress(OSError):  # the process was killed; there is no answer then either
            self._pipe.send((part.number, [*map(_row, jobs)]))
        return part

    def _answer(self, part: _Part) -> list[Plan] | None:
        """The plans for a part that was asked for; None where the process is gone."""
        while (message := self._answers.get()) is not None:
            number, answers, cut = message
            if number == part.number:
                self._cleaner.bench.cut.update(cut)
                return [_plan(job, one, self._encoding) for job, one in zip(part.jobs, answers, strict=True)]
            # What was asked for in a folder whose writing came to nothing.
        self._answers.put(None)
        return None


@dataclass
class _Part:
    """Jobs and their plans; without plans they were asked for by the number."""

    jobs: Sequence[Job]
    plans: list[Plan] | None = None
    number: int | None = None


def _row(job: Job) -> _Row:
    root = None if job.root is None else str(job.root)
    return job.file, root, job.picture, job.origin, job.reader


def _serve(
    pipe: Connection,
    inherited: Connection | None,
    options: Options,
    counts: dict[str, int],
    captions: int,
) -> None:
    """Answer until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # that is the other side's to decide
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which a copy has from the other side as an interrupt
    if inherited is not None:
        inherited.close()
    planner, bench = _planner(options, counts, captions)
    with suppress(EOFError, OSError):
        while (asked := pipe.recv()) is not None:
            number, rows = asked
            jobs = [
                Job(file, root and Path(root), picture, origin=origin, reader=reader)
                for file, root, picture, origin, reader in rows
            ]
            pipe.send((number, [_answer(planner.plan(job)) for job in jobs], bench.cut))
            bench.cut = Counter()


def _planner(options: Options, counts: dict[str, int], captions: int) -> tuple[Planner, Bench]:
    bench = Bench(options.rules, counts, captions)
    return Planner(options, Cleaner(options.rules, bench)), bench


def _answer(plan: Plan) -> _Answer:
    outcome, change = plan.outcome, plan.change
    if change is None or change.before is None or change.stamp is None or outcome.job.origin is not None:
        return _facts(outcome, outcome.before, change)
    # The texts are those of the bytes, which are sent once.
    return _facts(outcome, change.before, change.stamp[:])


def _facts(outcome: Outcome, before: str | bytes | None, change: Any) -> _Answer:
    return before, outcome.after, outcome.written, outcome.differs, outcome.error, outcome.left, change


def _plan(job: Job, answer: _Answer, encoding: str | None) -> Plan:
    before, after, written, differs, error, left, change = answer
    if isinstance(before, bytes):
        change = Change(job.name, before, encode(after or "", before, job.file), Stamp(*change))
        before = decode_caption(before, job.file, encoding)
    return Plan(Outcome(job, before, after, written, differs, error, left), change)
