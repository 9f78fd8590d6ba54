"""What a caption's file is to become: read, clean, compare. Nothing is written here."""

from __future__ import annotations

from dataclasses import dataclass

from lorapipe_dataset.clean.captions.cleaner import Cleaner
from lorapipe_dataset.clean.captions.rules import Facts
from lorapipe_dataset.clean.files.inputs import Job, counterpart
from lorapipe_dataset.clean.files.posts import post_caption
from lorapipe_dataset.clean.files.textfile import encode, says_the_same
from lorapipe_dataset.clean.options import Options
from lorapipe_dataset.clean.settings import Existing
from lorapipe_engine.changes.filebytes import read_stamped
from lorapipe_engine.changes.journal import Change
from lorapipe_engine.errors import InputError, LoraError
from lorapipe_engine.files.links import LeadsOut
from lorapipe_engine.pictures.captions import decode_caption
from lorapipe_engine.pictures.joining import join_captions


@dataclass(slots=True)
class Outcome:
    """What came of a caption. ``before`` and ``after`` are texts (None: there is none); ``written``: whether its file
    changed or would; ``differs``: its file says something else than its record, and was left. ``left``: why it was left
    alone, where that is no error. ``passed``: what goes on in its record, where that is more than ``after``.
    """

    job: Job
    before: str | None = None
    after: str | None = None
    written: bool = False
    differs: bool = False
    error: str | None = None
    left: str | None = None
    passed: str | None = None


@dataclass(slots=True)
class Plan:
    """An outcome as it will be, and the change that makes it so."""

    outcome: Outcome
    change: Change | None = None


class Planner:
    """Plans for captions."""

    def __init__(self, options: Options, cleaner: Cleaner) -> None:
        self._options = options
        self._cleaner = cleaner

    def plan(self, job: Job) -> Plan:
        """What a caption's file is to become. What fails is in the outcome."""
        outcome = Outcome(job, error=job.error)
        if job.error is not None:
            return Plan(outcome)
        try:
            return Plan(outcome, self._decide(job, outcome))
        except LeadsOut as reason:
            return Plan(Outcome(job, left=str(reason)))
        except LoraError as error:
            outcome.error = str(error)
        except OSError as error:
            outcome.error = f"{job.file}: cannot be read ({error.strerror})"
        return Plan(outcome)

    def _decide(self, job: Job, outcome: Outcome) -> Change | None:
        """Clean a caption, and what its file is to become. Raises LoraError or OSError."""
        if job.given is not None and self._options.no_txt:
            self._decide_record(job, job.given, outcome)
            return None
        data, stamp = read_stamped(job.file, self._options.home_of(job.root))
        held = None if data is None else decode_caption(data, job.file, self._options.encoding)
        brought, facts = read_source(job, held, self._options)
        text = brought if brought is not None else held
        if text is None and not self._options.create:
            return None
        outcome.before = held
        facts = find_facts(job, self._options, self._cleaner, facts)
        outcome.after = self._clean(job, text or "", facts)
        foreign = job.given is not None or job.origin is not None
        if foreign and held is not None and held.strip() and not _agrees(held, text, outcome.after):
            if self._options.existing == "skip":
                outcome.differs = True
                return None
            joined = join_existing(
                self._cleaner, self._cleaner.clean(held, facts), outcome.after, self._options.existing
            )
            outcome.before, outcome.after = held, self._cleaner.clean(joined, facts)
        if held is None and not outcome.after:
            return None
        new = encode(outcome.after, data, job.file)
        if new == data:
            return None
        outcome.written = not self._options.no_txt
        return Change(job.name, data, new, stamp)

    def _decide_record(self, job: Job, text: str, outcome: Outcome) -> None:
        """Clean the caption of a record whose files are not touched."""
        outcome.before = text
        outcome.after = self._clean(job, text, find_facts(job, self._options, self._cleaner, job.facts))

    def _clean(self, job: Job, text: str, facts: Facts) -> str:
        try:
            return self._cleaner.clean(text, facts)
        except LoraError as error:
            raise InputError(f"{job.file}: {error}") from error


def _agrees(held: str, *texts: str | None) -> bool:
    return any(text is not None and says_the_same(held, text) for text in texts)


def read_source(job: Job, held: str | None, options: Options) -> tuple[str | None, Facts]:
    """The caption that a job brings, from its record, another file, or its own file in another format; None where the
    file holds it as it is. Raises LoraError or OSError.
    """
    if job.given is not None:
        return job.given, job.facts
    text = held
    if job.origin is not None:
        data, _ = read_stamped(job.origin, job.root)
        text = None if data is None else decode_caption(data, job.origin, options.encoding)
    if job.reader is not None and text is not None:
        return post_caption(job.reader(text), options)
    return (text if job.origin is not None else None), job.facts


def find_facts(job: Job, options: Options, cleaner: Cleaner, facts: Facts) -> Facts:
    """What is known of a caption, with the tags of its counterpart where captions are put together."""
    if options.other is None:
        return facts
    path = counterpart(job, options.other, options.extensions)
    if path is None:
        return facts
    held, _ = read_stamped(path, options.other)
    tags = cleaner.tags_of(decode_caption(held or b"", path, options.encoding))
    return Facts(facts.categories, facts.scores, tags)


def join_existing(cleaner: Cleaner, old: str, new: str, mode: Existing) -> str:
    """Two captions as one: ``append`` and ``prepend`` add what is new, ``merge`` puts new tags behind the old ones."""
    if mode == "replace" or mode == "skip":
        return new
    if cleaner.rules.style == "text":
        return f"{new} {old}" if mode == "prepend" else f"{old} {new}"
    return join_captions(old, cleaner.tags_of(new), mode, cleaner.rules.join, cleaner.bench.key)
