"""What ``lora-clean`` does once its options are read: captions in, steps, captions and records out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

from lorapipe_dataset.clean.captions.cleaner import Cleaner, counted
from lorapipe_dataset.clean.captions.rules import NO_FACTS, Facts
from lorapipe_dataset.clean.captions.tags import split_caption
from lorapipe_dataset.clean.files.documents import clean_document, document_captions
from lorapipe_dataset.clean.files.inputs import Document, Job, gather
from lorapipe_dataset.clean.files.plan import Outcome, find_facts, read_source
from lorapipe_dataset.clean.files.work import Worker, by_folder
from lorapipe_dataset.clean.files.writers import write_rows
from lorapipe_dataset.clean.options import Options
from lorapipe_dataset.clean.tell import TOOL, Count, Teller, tell_cut, tell_frequency
from lorapipe_engine.changes.filebytes import read_stamped
from lorapipe_engine.changes.journal import Journal
from lorapipe_engine.changes.takeback import take_back
from lorapipe_engine.command.progress import progress
from lorapipe_engine.command.tool import say, show
from lorapipe_engine.errors import LoraError
from lorapipe_engine.files.writing.atomic import check_output
from lorapipe_engine.pictures.captions import decode_caption

_BATCH = 1 << 16
_STREAMED_BATCH = 64


def run(options: Options, stdin: BinaryIO | None = None) -> int:
    """Clean what the options name; the exit status. Raises LoraError where nothing could be done."""
    if options.undo:
        return take_back(options.inputs, TOOL, run=options.run, dry_run=options.dry_run)
    if options.output is not None and not options.writes_texts:
        check_output(options.output, force=options.force)
    streamed = not options.inputs or "-" in options.inputs
    work: Iterable[Job | Document] = gather(options, stdin)
    total = 0
    if not streamed or options.rules.needs_all:
        work = list(work)
        total = len(work)
    cleaner = Cleaner(options.rules)
    if options.check_trigger is not None:
        return check_trigger(options.check_trigger, work, options, cleaner)
    if options.rules.needs_all:
        cleaner = counted(options.rules, read_all(work, options, cleaner))
    teller = Teller(options, Count())
    tags: Counter[str] = Counter()
    rows: list[tuple[Path, str]] = []
    # A bar for what comes through a pipe would stand in the lines of the command that sends it, which has its own.
    shown = progress(total, "cleaning", "caption") if total else nullcontext()
    with shown as bar:
        for outcomes in clean_all(work, options, cleaner, _STREAMED_BATCH if streamed else _BATCH, total):
            teller.tell(outcomes)
            for outcome in outcomes if options.frequency else ():
                tags.update(map(cleaner.bench.key, cleaner.tags_of(outcome.after or "")))
            if not options.writes_texts:
                rows += [
                    (Path(path), o.after)
                    for o in outcomes
                    for path in (o.job.picture or o.job.file, *o.job.others)
                    if o.after is not None and o.error is None and not o.job.second
                ]
            if bar is not None:
                bar.update(len(outcomes))
    if not options.dry_run:
        write_rows(rows, options)
    teller.summary()
    tell_cut(cleaner.bench.cut)
    if options.frequency:
        tell_frequency(tags)
    return 1 if teller.count.failed else 0


def clean_all(
    work: Iterable[Job | Document], options: Options, cleaner: Cleaner, most: int, total: int
) -> Iterator[list[Outcome]]:
    """What came of everything, in order; a folder stays locked for at most ``most`` captions.

    ``total``: about how many there are, 0 where that is not known.
    """
    journal = Journal(TOOL)
    with Worker(options, cleaner, journal, total) as worker:
        for batch in by_folder(work, most):
            if isinstance(batch, Document):
                yield clean_document(batch, options, cleaner, journal)
            else:
                yield from worker.clean(batch)


def read_all(
    work: Iterable[Job | Document], options: Options, cleaner: Cleaner
) -> Iterator[tuple[str, Facts]]:
    """The captions as they are now, for counting; what cannot be read is told when its turn comes."""
    for job in work:
        try:
            if isinstance(job, Document):
                yield from ((text, NO_FACTS) for text in document_captions(job, options, cleaner))
            elif job.error is None:
                data = read_stamped(job.file, options.home_of(job.root))[0] if job.given is None else None
                held = None if data is None else decode_caption(data, job.file, options.encoding)
                text, facts = read_source(job, held, options)
                text = text if text is not None else held
                if text is not None or options.create:
                    yield text or "", find_facts(job, options, cleaner, facts)
        except (LoraError, OSError):
            continue


def check_trigger(trigger: str, work: Iterable[Job | Document], options: Options, cleaner: Cleaner) -> int:
    """List the captions that lack a tag of the trigger; 1 if there are any. Nothing is written."""
    key = cleaner.bench.key
    wanted = {key(tag) for tag in split_caption(trigger, options.rules.separators)}
    seen = lacking = 0
    for job in work:
        name = job.path if isinstance(job, Document) else job.file
        if isinstance(job, Job) and job.given is None and not Path(job.file).exists():
            texts = [""]
        else:
            texts = [text for text, _ in read_all([job], options, cleaner)]
            if not texts and isinstance(job, Job):
                texts = [""]  # it cannot be read, so it is listed
        for text in texts:
            seen += 1
            if not wanted <= set(map(key, cleaner.tags_of(text))):
                lacking += 1
                show(str(name))
    say(f"{TOOL}: {seen - lacking:,} of {seen:,} captions have '{trigger}'")
    return 1 if lacking else 0
