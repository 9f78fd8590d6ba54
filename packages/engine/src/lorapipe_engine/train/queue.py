"""Several runs, one after another: all are checked before the first begins, and what fails is told.

Under a launcher each process takes runs of its own, see :mod:`.sharing`.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from lorapipe_engine.advice.advice import Planned, advice
from lorapipe_engine.command.process.terminating import put_off
from lorapipe_engine.command.tool import complain_of, say, show
from lorapipe_engine.datasets.scan import Dataset, scan
from lorapipe_engine.errors import ConfigError, InputError, LoraError, OutputError, ProblemFound
from lorapipe_engine.pictures.batches import batches_per_epoch
from lorapipe_engine.settings import DataSettings, RunSettings
from lorapipe_engine.settings.several import Run
from lorapipe_engine.train.base.shelf import Shelf, Stamp, base_key
from lorapipe_engine.train.choose import choose
from lorapipe_engine.train.plan import Length, plan_length, plan_model
from lorapipe_engine.train.results.ended import (
    Ended,
    Remembered,
    ended,
    is_intact,
    read_record,
    write_record,
)
from lorapipe_engine.train.results.outputs import check_outputs
from lorapipe_engine.train.results.state import check_begun, purpose, state_file
from lorapipe_engine.train.session import (
    Queued,
    check_cheaply,
    look_at,
    run_training,
    with_first_resolution,
)
from lorapipe_engine.train.sharing import Sharing

Say = Callable[[str], None]


@dataclass(frozen=True)
class Checked:
    """A run that can begin, as far as that shows before the base is read. ``asked``: see :func:`.state.purpose`.
    ``is_own``: what stands in the place of its results is what it left itself when it was killed, without a state.
    """

    run: Run
    asked: dict[str, object]
    length: Length
    pictures: int
    base: Stamp
    source: str
    notes: tuple[str, ...]
    is_own: bool = False
    before: Ended | None = None

    @property
    def output(self) -> Path:
        """Its results' common beginning."""
        return self.run.settings.run.output_dir / self.run.settings.run.output_name


def check_runs(runs: Sequence[Run], sharing: Sharing) -> list[Checked]:
    """Check all runs. Raises ConfigError where some cannot begin, after each was told."""
    scanned: dict[tuple[DataSettings, int], Dataset] = {}
    checked, refused = [], 0
    together = sharing.count if len(runs) == 1 else 1
    for run in runs:
        try:
            sharing.process(run.settings.model.device)
            checked.append(check_run(run, scanned, together))
        except LoraError as error:
            if len(runs) == 1:
                raise
            if sharing.is_main:
                complain_of(run.label, error)
            refused += 1
    if refused:
        raise ConfigError(f"{refused} of {len(runs)} runs cannot begin, so none was begun")
    return checked


def check_run(run: Run, scanned: dict[tuple[DataSettings, int], Dataset], together: int = 1) -> Checked:
    """Find what can be found before the base is read. ``scanned``: datasets that were looked through already;
    ``together``: processes that train the run."""
    settings = run.settings
    model = plan_model(settings.model)
    _, notes = check_cheaply(settings)
    key = settings.data, settings.run.seed
    dataset = scanned.get(key) or scan(*key, processes=together)
    scanned[key] = dataset
    settings = with_first_resolution(settings, dataset)
    notes += look_at(settings, dataset).notes
    sizes = [size * together for size in dataset.batch_sizes]
    batches = batches_per_epoch(dataset.buckets, dataset.repeats, sizes)
    length = plan_length(batches, settings.run, settings.optimizer.gradient_accumulation_steps)
    settings = replace(settings, run=settings.run.with_rhythm(length.epochs))
    notes += advice(Planned(settings=settings, dataset=dataset, steps=length.steps, processes=together))
    asked = purpose(settings, dataset)
    checked = Checked(
        run=run,
        asked=asked,
        length=length,
        pictures=len(dataset.pictures),
        base=base_key(settings.model, model.source, model.dtype),
        source=str(model.source),
        notes=tuple(notes),
    )
    remembered = None if settings.run.overwrite else read_record(settings.run)
    if remembered is not None and remembered.asked == asked:
        if remembered.ended is not None and is_intact(settings.run, remembered.ended):
            return replace(checked, before=remembered.ended)
        if remembered.ended is None and not state_file(settings.run).exists():
            return replace(checked, is_own=True)
    check_begun(settings, {**asked, "run.processes": together})
    check_outputs(settings.run)
    return checked


def plan_lines(checked: Sequence[Checked]) -> list[str]:
    """What will be done, a line a run, and how long all of it is."""
    lines = []
    for number, one in enumerate(checked, start=1):
        what = "done before" if one.before else _beginning(one.run.settings.run)
        same = number > 1 and one.base == checked[number - 2].base
        lines.append(
            f"{number}. {one.run.label}: {one.length.in_words()}, "
            f"{one.pictures} pictures, {'the same base' if same else one.source}, to {one.output}, {what}"
        )
    steps = sum(one.length.steps for one in checked if one.before is None)
    left = sum(one.before is None for one in checked)
    return [
        *lines,
        f"{left} of {len(checked)} runs to do, {steps:,} steps: {_hours(steps)} at one step a second",
    ]


def _beginning(run: RunSettings) -> str:
    """Where a run begins: what it was given to go on from, unless a state of its own is there."""
    if state_file(run).exists() and not (run.overwrite and run.resume is None):
        return "goes on from its state"
    return "from the start" if run.resume is None else f"goes on from {run.resume}"


@dataclass(frozen=True)
class Result:
    """How a run ended, or the ``word`` that the table has for it; ``is_unnamed``: its choice of an epoch failed."""

    ended: Ended | None = None
    word: str = ""
    is_unnamed: bool = False

    def written(self) -> str:
        """As :meth:`read` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Result:
        """From what another process has written."""
        row = json.loads(text)
        return cls(**{**row, "ended": row["ended"] and Ended(**row["ended"])})


def run_queue(checked: Sequence[Checked], done: Callable[[Path], None], sharing: Sharing) -> None:
    """Train the runs in order, of several processes each its share; ``done`` gets each file of each.

    A run that fails is told and the next begins. Raises ProblemFound in the end if one did, in all processes;
    KeyboardInterrupt goes on at once, after the table of what is there.
    """
    shelf = Shelf()
    with _table_told(checked, sharing):
        for number in sharing.numbers(len(checked)):
            one = checked[number]
            tell: Say = say if sharing.count == 1 else partial(_say_of, one.run.label)
            tell(f"run {number + 1} of {len(checked)}" + (f": {one.run.label}" if sharing.count == 1 else ""))
            end = partial(_end, number, one, done, sharing)
            if one.before is not None:
                chooses = one.run.settings.run.choose
                tell("done before" + (", so its epochs are not drawn again" if chooses else ""))
                end(one.before)
            else:
                following = [later.base for later in checked[number + 1 :] if later.before is None]
                shelf.wanted = following[0] if following else None
                result = _train(one, shelf, sharing, tell, end)
                sharing.end(number, result.written())
        sharing.wait("trained")  # a launcher ends the others when one process ends with another status than 0
    results = _results(checked, sharing)
    if len(results) < len(checked):
        raise ProblemFound(f"{len(checked) - len(results)} of {len(checked)} runs were not trained")
    failed = sum(result.ended is None for _, result in results)
    if failed:
        raise ProblemFound(f"{failed} of {len(checked)} runs failed; the same command tries them again")
    unnamed = [one.run.label for one, result in results if result.is_unnamed]
    if unnamed:
        raise ProblemFound(
            f"all runs are trained, but of {len(unnamed)} no epoch is named: {', '.join(unnamed)}"
        )


def _say_of(label: str, text: str) -> None:
    """What a run says while others run beside it."""
    say(f"{label}: {text}")


@contextmanager
def _table_told(checked: Sequence[Checked], sharing: Sharing) -> Iterator[None]:
    """Tell in the end, once, what came of all runs, however it comes."""
    try:
        yield
    finally:
        if sharing.is_main:
            for line in table(_results(checked, sharing), len(checked)):
                say(line)


def _results(checked: Sequence[Checked], sharing: Sharing) -> list[tuple[Checked, Result]]:
    """The runs that have ended, in order, and how."""
    ended = sharing.ended(len(checked))
    return [(checked[number], Result.read(text)) for number, text in sorted(ended.items())]


def _end(number: int, one: Checked, done: Callable[[Path], None], sharing: Sharing, ended: Ended) -> None:
    """Name the files of a run that has ended, and have all know."""
    for name in ended.files:
        done(one.output.with_name(name))
    sharing.end(number, Result(ended).written())


def _train(
    one: Checked, shelf: Shelf, sharing: Sharing, tell: Say, is_there: Callable[[Ended], None]
) -> Result:
    """Train one run; ``is_there`` gets how it ended as soon as it is remembered."""
    settings, results = one.run.settings, []
    if one.is_own:
        settings = replace(settings, run=replace(settings.run, overwrite=True))
    began = time.monotonic()

    def begin() -> None:
        write_record(settings.run, Remembered(one.asked))

    def end(files: list[Path]) -> None:
        results.append(ended(settings.run, files, time.monotonic() - began))
        with put_off():
            write_record(settings.run, Remembered(one.asked, results[0]))
            is_there(results[0])

    try:
        process = sharing.process(settings.model.device)
        trained = run_training(settings, one.run.print_config(), tell, Queued(shelf, begin, end, process))
    except Exception as error:  # whatever it is, the other runs have nothing to do with it
        complain_of(one.run.label, error)
        shelf.clear()
        word = "refused" if isinstance(error, ConfigError | InputError) else "failed"
        return Result(word="not written" if isinstance(error, OutputError) else word)
    finally:
        _free()
    if trained.choosing is not None:
        try:
            choose(trained.choosing, tell)
        except LoraError as error:  # the networks are there
            complain_of(one.run.label, error)
            return Result(results[0], is_unnamed=True)
    return Result(results[0])


def _free() -> None:
    """Give back what a run had on the card: its modules hold each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# -------------------------------------------------------------------------------- what came of it


def table(rows: Sequence[tuple[Checked, Result]], total: int) -> list[str]:
    """The runs that were done or tried: loss, validation loss, files, time; those not begun are counted."""
    cells = [("run", "loss", "validation", "files", "time", "last file")] if rows else []
    for one, result in rows:
        ended = result.ended
        if ended is None:
            cells.append((one.run.label, result.word, "", "", "", ""))
            continue
        last = one.output.with_name(list(ended.files)[-1])
        numbers = (_number(ended.loss), _number(ended.validation), str(len(ended.files)))
        cells.append((one.run.label, *numbers, _hours(ended.seconds), str(last)))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    if total > len(rows):
        lines.append(f"{total - len(rows)} of {total} runs not finished; the same command goes on there")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _hours(seconds: float) -> str:
    """Such as 40 s, 3 min, 2.5 h, 12 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"


def show_plan(checked: Sequence[Checked], *, dry: bool) -> None:
    """Show what will be done: as the result of a dry run, else as talk, for then each run tells its notes itself."""
    for one in checked if dry else ():
        for note in one.notes:
            say(f"note: {one.run.label}: {note}")
    for line in plan_lines(checked):
        if dry:
            show(line)
        else:
            say(line)
