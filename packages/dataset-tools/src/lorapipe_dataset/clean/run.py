"""What ``lora-clean`` does once its options are read: captions in, steps, captions and records out."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click

from lorapipe_dataset.clean.cleaner import Cleaner, counted
from lorapipe_dataset.clean.inputs import Document, Job, gather
from lorapipe_dataset.clean.options import Options
from lorapipe_dataset.clean.rules import Facts
from lorapipe_dataset.clean.textfile import decode
from lorapipe_dataset.clean.work import Outcome, Worker, by_folder, find_facts
from lorapipe_dataset.journal import Journal, read_bytes, undo
from lorapipe_dataset.output import printable as escaped
from lorapipe_engine.command import say
from lorapipe_engine.errors import InputError, LoraError
from lorapipe_engine.progress import QUIET, progress
from lorapipe_engine.records import Record, format_record

TOOL = "lora-clean"
_BATCH = 4096
_STREAMED_BATCH = 64


@dataclass
class Count:
    """What came of the captions."""

    seen: int = 0
    changed: int = 0
    empty: int = 0
    missing: int = 0
    differ: int = 0
    failed: int = 0
    cut: int = 0


def run(options: Options, stdin: BinaryIO | None = None) -> int:
    """Clean what the options name; the exit status. Raises LoraError where nothing could be done."""
    if options.undo:
        return take_back(options)
    work: Iterable[Job | Document] = gather(options, stdin)
    streamed = not options.inputs or "-" in options.inputs
    total = 0
    if not streamed or options.rules.needs_all:
        work = list(work)
        total = len(work)
    cleaner = Cleaner(options.rules)
    if options.rules.needs_all:
        cleaner = counted(options.rules, _texts(work, options, cleaner))
    journal = Journal(TOOL)
    count, tags = Count(), Counter[str]()
    teller = Teller(options, count)
    with progress(total, "cleaning", "caption") as bar, Worker(options, cleaner, journal) as worker:
        jobs = (job for job in work if isinstance(job, Job))
        for batch in by_folder(jobs, _STREAMED_BATCH if streamed else _BATCH):
            outcomes = worker.clean(batch)
            teller.tell(outcomes)
            if options.frequency:
                for outcome in outcomes:
                    tags.update(map(cleaner.bench.key, cleaner.tags_of(outcome.after or "")))
            bar.update(len(batch))
    teller.summary()
    if options.frequency:
        tell_frequency(tags)
    return 1 if count.failed else 0


def _texts(work: Iterable[Job | Document], options: Options, cleaner: Cleaner) -> Iterator[tuple[str, Facts]]:
    """The captions as they are now, for counting; what cannot be read is told when its turn comes."""
    for job in work:
        if not isinstance(job, Job) or job.error is not None:
            continue
        try:
            data = read_bytes(job.file) if job.given is None else None
            text = (
                job.given if job.given is not None else decode(data, job.file) if data is not None else None
            )
            if text is not None:
                yield text, find_facts(job, options, cleaner)
        except (LoraError, OSError):
            continue


# -------------------------------------------------------------------------------- telling


class Teller:
    """Says what came of captions: errors to stderr, differences or records to stdout."""

    def __init__(self, options: Options, count: Count) -> None:
        self._options = options
        self._count = count
        self._folders: dict[Path, None] = {}
        piped = sys.stdout is not None and not sys.stdout.isatty()
        self._records = options.jsonl if options.jsonl is not None else piped and not options.dry_run

    def tell(self, outcomes: list[Outcome]) -> None:
        """Count and tell what came of a batch."""
        lines: list[str] = []
        for outcome in outcomes:
            self._add(outcome)
            if outcome.error is not None:
                click.echo(f"{TOOL}: error: {_one_line(outcome)}", err=True)
            if self._records:
                lines.append(format_record(as_record(outcome)))
            elif self._options.dry_run and outcome.written:
                lines.append(difference(outcome))
        if lines:
            click.echo("\n".join(lines).encode("utf-8", "surrogateescape"))

    def _add(self, outcome: Outcome) -> None:
        count = self._count
        count.seen += 1
        if outcome.error is not None:
            count.failed += 1
            return
        count.missing += outcome.before is None and outcome.after is None
        count.empty += outcome.after == ""
        count.differ += outcome.differs
        changed = outcome.written or outcome.before != outcome.after
        count.changed += changed
        if outcome.written:
            self._folders[outcome.job.file.parent] = None

    def summary(self) -> None:
        """One line for the user, and how to take it back."""
        count = self._count
        verb = "would change" if self._options.dry_run else "changed"
        parts = [f"{count.changed:,} of {count.seen:,} captions {verb}"]
        parts += [f"{count.missing:,} pictures without a caption"] * bool(count.missing)
        parts += [f"{count.empty:,} are empty"] * bool(count.empty)
        parts += [f"{count.failed:,} failed"] * bool(count.failed)
        say(f"{TOOL}: {', '.join(parts)}")
        if count.differ:
            say(
                f"{TOOL}: {count.differ:,} caption files say something else than their records and are left alone "
                "(see --existing)"
            )
        if self._folders and not self._options.dry_run and self._options.in_place:
            places = [str(path) for path in self._options.inputs_for_undo(self._folders)]
            say(f"{TOOL}: to take it back: {TOOL} --undo {printable(shlex.join(places))}")


def _one_line(outcome: Outcome) -> str:
    error = outcome.error or ""
    name = str(outcome.job.picture or outcome.job.file)
    known = str(outcome.job.file) in error or name in error
    return printable(error if known else f"{name}: {error}")


def as_record(outcome: Outcome) -> Record:
    """The record that goes on to the next tool: the one that came, with the new caption."""
    job = outcome.job
    data = dict(job.record.data) if job.record is not None else {}
    if outcome.error is not None:
        data["error"] = outcome.error
    elif outcome.after is not None:
        data["caption"] = outcome.after
    path = job.record.path if job.record is not None else job.picture or job.file
    return Record(path, data)


def printable(text: str) -> str:
    """A text for one line of a terminal; most are so already."""
    return text if text.isprintable() else escaped(text)


def difference(outcome: Outcome) -> str:
    """A caption before and after, as lines with ``-`` and ``+`` under its file's name."""
    old = (outcome.before or "").splitlines()
    new = (outcome.after or "").splitlines()
    rows = [f"- {printable(line)}" for line in old] + [f"+ {printable(line)}" for line in new]
    if old == new:
        rows = ["  (byte order mark or line ends only)"]
    return "\n".join([printable(str(outcome.job.file)), *rows])


def tell_frequency(tags: Counter[str]) -> None:
    """How many captions have each tag, the most frequent first, to stderr."""
    if not QUIET.get():
        for tag, number in sorted(tags.items(), key=lambda item: (-item[1], item[0])):
            click.echo(f"{number:7d}  {printable(tag)}", err=True)


# -------------------------------------------------------------------------------- taking back


def take_back(options: Options) -> int:
    """Undo the last run in the folders; the exit status."""
    if not options.inputs:
        raise InputError("--undo: name the folders")
    done = undo([Path(word) for word in options.inputs], TOOL, dry_run=options.dry_run)
    for failure in done.failures:
        click.echo(f"{TOOL}: error: {printable(failure)}", err=True)
    verb = "would be" if options.dry_run else "are"
    say(f"{TOOL}: {len(done.restored):,} files {verb} as before {done.run.split('.')[0]}")
    return 1 if done.failures else 0
