"""Cleaning caption files: read, clean, compare, write, a folder's batch at a time under its lock."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from lorapipe_dataset.clean.captions.cleaner import Cleaner
from lorapipe_dataset.clean.files.helper import PART, Helper, can_help
from lorapipe_dataset.clean.files.inputs import Document, Job
from lorapipe_dataset.clean.files.plan import Outcome, Plan, Planner
from lorapipe_dataset.clean.options import Options
from lorapipe_engine.changes.journal import Begun, ChangedMeanwhile, Folder, Journal
from lorapipe_engine.errors import LoraError

_ATTEMPTS = 5
_PORTION = 2048  # captions that are brought to the disk together


class Worker:
    """Cleans batches of captions. ``total``: about how many there are, if that is known."""

    def __init__(self, options: Options, cleaner: Cleaner, journal: Journal, total: int = 0) -> None:
        self._options = options
        self._journal = journal
        self._planner = Planner(options, cleaner)
        self._writes = not (options.dry_run or options.no_txt) and options.writes_texts
        self._cleaner = cleaner
        self._stack = ExitStack()
        self._helper: Helper | None = None
        self._total = total

    def __enter__(self) -> Worker:
        if can_help(self._options, self._total):
            self._helper = self._stack.enter_context(Helper(self._options, self._cleaner))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def clean(self, jobs: Sequence[Job]) -> Iterator[list[Outcome]]:
        """Clean captions that lie in one folder: what came of them, a portion at a time. What fails is in that."""
        if not self._writes:
            yield from ([plan.outcome for plan in plans] for plans in self._plans(jobs))
            return
        told = 0
        try:
            home = self._options.home_of(jobs[0].root)
            makes = self._options.output is not None
            with self._journal.folder(Path(jobs[0].file).parent, home, make=makes) as desk:
                for outcomes in self._clean_locked(jobs, desk):
                    told += len(outcomes)
                    yield outcomes
        except LoraError as error:
            yield [Outcome(job, error=str(error)) for job in jobs[told:]]

    def _clean_locked(self, jobs: Sequence[Job], desk: Folder) -> Iterator[list[Outcome]]:
        """While the disk has one portion, the next is planned."""
        waiting: tuple[list[Plan], Begun] | None = None
        for plans in _portions(self._plans(jobs)):
            begun = desk.begin([plan.change for plan in plans if plan.change])
            if waiting is not None:
                yield self._finish(*waiting, desk)
            waiting = plans, begun
        if waiting is not None:
            yield self._finish(*waiting, desk)

    def _finish(self, plans: list[Plan], begun: Begun, desk: Folder) -> list[Outcome]:
        self._settle(plans, desk.finish(begun), desk)
        return [plan.outcome for plan in plans]

    def _plans(self, jobs: Sequence[Job]) -> Iterator[list[Plan]]:
        """Plans, a part at a time; with a helper the next part is planned while one is written."""
        plain = not any(job.record or job.given is not None or job.error for job in jobs)
        if self._helper is not None and plain:
            return self._helper.plan(jobs, self._planner)
        parts = (jobs[start : start + PART] for start in range(0, len(jobs), PART))
        return ([self._planner.plan(job) for job in part] for part in parts)

    def _settle(self, plans: list[Plan], failures: dict[str, LoraError], desk: Folder) -> None:
        """Try files again that somebody wrote in between; the other errors are outcomes."""
        for at, plan in enumerate(plans if failures else ()):
            error = failures.get(plan.change.name) if plan.change else None
            for _ in range(_ATTEMPTS):
                if not isinstance(error, ChangedMeanwhile):
                    break
                plan = plans[at] = self._planner.plan(plan.outcome.job)
                error = desk.write([plan.change]).get(plan.change.name) if plan.change else None
            if error is not None:
                plan.outcome.error, plan.outcome.written = str(error), False


def _portions(parts: Iterable[list[Plan]]) -> Iterator[list[Plan]]:
    """The same plans in larger lists."""
    portion: list[Plan] = []
    for part in parts:
        portion += part
        if len(portion) >= _PORTION:
            yield portion
            portion = []
    if portion:
        yield portion


def by_folder(work: Iterable[Job | Document], most: int) -> Iterator[list[Job] | Document]:
    """Jobs in batches of one folder each, and documents, in order."""
    batch: list[Job] = []
    before: str | None = None
    for one in work:
        place = os.path.dirname(one.file) if isinstance(one, Job) else None  # noqa: PTH120
        if batch and (len(batch) >= most or place != before):
            yield batch
            batch = []
        before = place
        if isinstance(one, Document):
            yield one
        else:
            batch.append(one)
    if batch:
        yield batch
