"""What ``lora-tag`` does once its options are read: find pictures, ask the models, write captions and records."""

from __future__ import annotations

import shlex
from collections import Counter, deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lorapipe_engine.changes.takeback import take_back
from lorapipe_engine.command.progress import progress
from lorapipe_engine.command.text import printable
from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import LoraError, ProblemFound
from lorapipe_tagger.caption import Captioner, Outcome
from lorapipe_tagger.captions.write import TOOL, read_existing
from lorapipe_tagger.models.names import find_model
from lorapipe_tagger.options import Options, rules_for, shape_for
from lorapipe_tagger.report import open_report
from lorapipe_tagger.scoring.combine import Consensus
from lorapipe_tagger.scoring.embeddings import open_embeddings
from lorapipe_tagger.scoring.picture import without_pillow_limit
from lorapipe_tagger.scoring.pipeline import Pipeline, Result, Tagger
from lorapipe_tagger.scoring.scores import ScoreCache, cache_folder
from lorapipe_tagger.sources import Task, check_folders, find_tasks, warn_of_formats
from lorapipe_tagger.tell import Count, tell, tell_constant, tell_frequency, tell_sentences

_WRITERS = 8
_WRITES_AHEAD = 32


@dataclass(frozen=True)
class Kept:
    """A picture that keeps the caption it has."""

    task: Task
    text: str


def run(options: Options, stdin: BinaryIO | None = None) -> int:
    """Tag everything the options name; the exit status. Raises LoraError where nothing could be done."""
    if options.undo:
        return take_back(options.inputs, TOOL, run=options.run, dry_run=options.dry_run)
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
    count, tags = Count("tagged" if options.tagger else "captioned"), Counter[str]()
    page = open_report(options.report, force=options.force) if options.report else nullcontext()
    vectors = (
        open_embeddings(options.embeddings, force=options.force) if options.embeddings else nullcontext()
    )
    captioner, ended = Captioner(options), None
    try:
        with (
            progress(len(tasks), "tagging", "picture") as bar,
            page as report,
            vectors as embeddings,
            closing(tag_all(tasks, options, captioner)) as outcomes,
        ):
            for outcome in outcomes:
                tell(outcome, options, count)
                tags.update(outcome.tags)
                if report and outcome.row:
                    report.add(outcome.row)
                if embeddings and outcome.vector is not None:
                    embeddings.add(outcome.record.path, outcome.vector)
                bar.update()
    except LoraError as error:
        if captioner.sentences is None or not (count.tagged or captioner.writer.folders):
            raise
        ended = error
    say(count.line())
    if captioner.sentences:
        tell_sentences(captioner.sentences)
    if captioner.writer.folders:
        places = shlex.join(map(str, _for_undo(options, captioner.writer.folders)))
        say(f"lora-tag: to take it back: lora-tag --undo {printable(places)}")
    if ended is not None:
        raise ProblemFound(f"{ended}; what is done stays, and the same command goes on") from ended
    for name, path in (("report", options.report), ("embeddings", options.embeddings)):
        if path:
            say(f"lora-tag: {name}: {path}")
    warn_of_formats(tasks)
    if options.shape.trigger:
        tell_constant(tags, count.tagged, options.shape)
    if options.frequency:
        tell_frequency(tags)
    return 1 if count.failed else 0


def _for_undo(options: Options, folders: Iterable[Path]) -> list[Path]:
    """What to name to take a run back: the folders of the command line, else those of the captions."""
    written = list(folders)
    named = [Path(word) for word in (options.output_dir, *options.inputs) if word and Path(word).is_dir()]
    if named and all(any(one == root or root in one.parents for root in named) for one in written):
        return named[:1] if options.output_dir else named
    return written


def tag_all(tasks: Sequence[Task], options: Options, captioner: Captioner) -> Generator[Outcome, None, None]:
    """What came of each task, in order. Pictures whose captions are to be kept are passed by without a look.

    Captions are written by threads, because each is waited for until it is on the disk.
    """
    standing = [find_standing(task, options) for task in tasks]
    wanted = [task for task, outcome in zip(tasks, standing, strict=True) if outcome is None]
    waiting: deque[Future[Outcome]] = deque()
    if wanted:
        captioner.begin()
    jobs = options.asking.jobs if options.asking else _WRITERS
    ahead = max(_WRITES_AHEAD, 2 * jobs)
    with (
        without_pillow_limit() if options.asking else nullcontext(),
        closing(score_all(wanted, captioner, options)) as results,
        ThreadPoolExecutor(jobs, "write") as writers,
    ):
        try:
            for outcome in standing:
                if isinstance(outcome, Kept):
                    waiting.append(writers.submit(captioner.keep, outcome.task, outcome.text))
                else:
                    waiting.append(writers.submit(captioner.finish, outcome or next(results)))
                while waiting and (len(waiting) > ahead or waiting[0].done()):
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            # Without waiting for answers that nobody is to read.
            captioner.stop()
            writers.shutdown(cancel_futures=True)
            raise
        finally:
            writers.shutdown()
            captioner.close()


def find_standing(task: Task, options: Options) -> Kept | Result | None:
    """The caption that a picture keeps without being looked at; None where it is to be scored."""
    if options.existing != "skip" or task.caption is None or options.report or options.embeddings:
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
    if not options.tagger:
        yield from map(Result, tasks)
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
