"""What ``lora-tag`` does once its options are read: find pictures, ask the models, write captions and records."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import BinaryIO

import click

from lorapipe_engine.command import say
from lorapipe_engine.errors import LoraError
from lorapipe_engine.progress import QUIET, Progress, progress
from lorapipe_engine.records import write_record
from lorapipe_tagger.caption import Captioner, Outcome, shown
from lorapipe_tagger.combine import Consensus
from lorapipe_tagger.models import find_model
from lorapipe_tagger.options import Options, rules_for, shape_for
from lorapipe_tagger.pipeline import Pipeline, Result, Tagger
from lorapipe_tagger.report import open_report
from lorapipe_tagger.scores import ScoreCache, cache_folder
from lorapipe_tagger.select import spelling
from lorapipe_tagger.shape import Shape, is_count
from lorapipe_tagger.sources import Task, check_folders, find_tasks, warn_of_formats
from lorapipe_tagger.write import read_existing

_WRITERS = 8
_WRITES_AHEAD = 32
_CONSTANT_SHARE = 0.9
_FEWEST_FOR_SHARES = 10


@dataclass(frozen=True)
class Kept:
    """A picture that keeps the caption it has."""

    task: Task
    text: str


@dataclass
class Count:
    """What came of the pictures."""

    tagged: int = 0
    cached: int = 0
    kept: int = 0
    failed: int = 0

    def line(self) -> str:
        """One line for the user."""
        parts = [f"{self.tagged} tagged" + (f" ({self.cached} from the cache)" if self.cached else "")]
        parts += [f"{self.kept} had captions already (see --existing)"] * bool(self.kept)
        parts += [f"{self.failed} failed"] * bool(self.failed)
        return f"lora-tag: {', '.join(parts)}"


def run(options: Options, stdin: BinaryIO | None = None) -> int:
    """Tag everything the options name; the exit status. Raises LoraError where nothing could be done."""
    tasks = find_tasks(
        options.inputs,
        stdin,
        recursive=options.recursive,
        extension=options.extension,
        output_dir=options.output_dir,
        write=options.write,
        collision=options.collision,
    )
    if not options.dry_run:
        check_folders(tasks, options.output_dir)
    lines = not as_records(options)
    count, tags = Count(), Counter[str]()
    page = open_report(options.report, force=options.force) if options.report else nullcontext()
    with Progress(len(tasks), "tagging", "picture") if not lines else progress(0, "") as bar, page as report:
        for outcome in tag_all(tasks, options):
            tell(outcome, options, count)
            tags.update(outcome.tags)
            if report and outcome.row:
                report.add(outcome.row)
            bar.update()
    say(count.line())
    if options.report:
        say(f"lora-tag: report: {options.report}")
    warn_of_formats(tasks)
    if options.shape.trigger:
        tell_constant(tags, count.tagged, options.shape)
    if options.frequency:
        tell_frequency(tags)
    return 1 if count.failed else 0


def tag_all(tasks: Sequence[Task], options: Options) -> Iterator[Outcome]:
    """What came of each task, in order. Pictures whose captions are to be kept are passed by without a look.

    Captions are written by threads, because each is waited for until it is on the disk.
    """
    standing = [find_standing(task, options) for task in tasks]
    wanted = [task for task, found in zip(tasks, standing, strict=True) if found is None]
    captioner = Captioner(options)
    waiting: deque[Future[Outcome]] = deque()
    with (
        closing(score_all(wanted, captioner, options)) as results,
        ThreadPoolExecutor(_WRITERS, "write") as writers,
    ):
        for found in standing:
            if isinstance(found, Kept):
                waiting.append(writers.submit(captioner.keep, found.task, found.text))
            else:
                waiting.append(writers.submit(captioner.finish, found or next(results)))
            while waiting and (len(waiting) > _WRITES_AHEAD or waiting[0].done()):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def find_standing(task: Task, options: Options) -> Kept | Result | None:
    """The caption that a picture keeps; None where it is to be tagged."""
    if options.existing != "skip" or task.caption is None:
        return None
    try:
        text = read_existing(task.caption)
    except LoraError as error:
        return Result(task, error=str(error))
    return None if text is None else Kept(task, text)


def score_all(tasks: Sequence[Task], captioner: Captioner, options: Options) -> Generator[Result, None, None]:
    """The models' scores for each task, in order. Nothing is loaded or downloaded where there is nothing to tag."""
    if not tasks:
        return
    files = [
        find_model(word, revision=options.revision, model_dir=options.model_dir, offline=options.offline)
        for word in options.models
    ]
    taggers = [Tagger(one, options.work) for one in files]
    labels = [tagger.labels for tagger in taggers]
    consensus = Consensus(labels, [rules_for(one, options) for one in files], options.combine)
    captioner.use("+".join(one.name for one in files), consensus, shape_for(consensus.labels, options))
    cache = ScoreCache(cache_folder() / "tagger.sqlite") if options.cache else None
    try:
        yield from Pipeline(taggers, options.work, cache).run(tasks)
    finally:
        if cache:
            cache.close()


# -------------------------------------------------------------------------------- telling


def tell(outcome: Outcome, options: Options, count: Count) -> None:
    """Count what came of a picture; its error to stderr, its record or caption to stdout."""
    if outcome.error is not None:
        count.failed += 1
        click.echo(f"lora-tag: error: {shown(outcome.record.path)}: {outcome.error}", err=True)
    elif outcome.kept:
        count.kept += 1
    else:
        count.tagged += 1
        count.cached += outcome.cached
    if as_records(options):
        write_record(outcome.record, jsonl=True)
    elif outcome.error is None and not (outcome.kept and not options.dry_run):
        click.echo(f"{shown(outcome.record.path)}: {outcome.text}")


def tell_constant(tags: Counter[str], pictures: int, shape: Shape) -> None:
    """Tell of tags that nearly every picture of a trigger has: what is always there is better learned by the trigger."""
    given = {spelling(tag) for tag in (shape.trigger, *shape.add, *shape.first)}
    constant = [
        tag
        for tag, number in tags.most_common()
        if number > _CONSTANT_SHARE * pictures and spelling(tag) not in given and not is_count(tag)
    ]
    if constant and pictures >= _FEWEST_FOR_SHARES:
        say(
            f"lora-tag: note: in over {_CONSTANT_SHARE:.0%} of the captions: {', '.join(constant)}; what belongs to "
            f"{shape.trigger} is better learned by that word alone (--exclude, or lora-clean --drop)"
        )


def as_records(options: Options) -> bool:
    """Whether records go to stdout: if asked for, and in a pipe, but for what only people read."""
    if options.jsonl is not None:
        return options.jsonl
    return not (sys.stdout.isatty() or options.explain)


def tell_frequency(tags: Counter[str]) -> None:
    """How many captions have each tag, the most frequent first, to stderr."""
    if QUIET.get():
        return
    for tag, number in sorted(tags.items(), key=lambda item: (-item[1], item[0])):
        click.echo(f"{number:7d}  {tag}", err=True)
