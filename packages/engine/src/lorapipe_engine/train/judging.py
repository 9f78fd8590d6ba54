"""``--early_stop_by figures``: a few cells are drawn after each saved epoch, and lora-grid says which is the best.

The run draws them itself, with the network as it is and without it, from prompts and seeds that stay the same.
lora-grid is run as a program on all cells so far. The run ends when the figure was no higher for so many epochs; the
epoch that ``lora-grid --best`` takes is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lorapipe_engine.command.json_text import NoJson, parse_json
from lorapipe_engine.command.process.programs import PACKAGES, Ran, find_program, run_program
from lorapipe_engine.command.tool import say
from lorapipe_engine.datasets.scan import Dataset
from lorapipe_engine.errors import ConfigError, MissingExtra, ProblemFound
from lorapipe_engine.files.writing.atomic import atomic_write
from lorapipe_engine.nn.attach import Network
from lorapipe_engine.pictures.captions import fixed_caption
from lorapipe_engine.sampling.choosing import Caption, find_trigger, make_prompts
from lorapipe_engine.sampling.probes import kinds_of
from lorapipe_engine.settings import RunSettings, TrainSettings
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.objective.objective import Objective
from lorapipe_engine.train.processes import Processes
from lorapipe_engine.train.results.numbering import epoch_file
from lorapipe_engine.train.results.outputs import judged_folder
from lorapipe_engine.train.results.results import Results
from lorapipe_engine.train.results.state import State
from lorapipe_engine.train.sample.draw import draw
from lorapipe_engine.train.sample.prompts import Prompt

GRID = "lora-grid"
STEPS = 20  # of the sampler, as lora-sample has them, where the user's own prompts do not say
Row = dict[str, Any]  # a record of a cell


def own_captions(dataset: Dataset) -> list[Caption]:
    """The captions of what is trained, of which prompts may be made."""
    return [
        Caption(fixed_caption(row.caption, dataset.subset_of(row).captions), row.repeats)
        for row in dataset.pictures
        # What came by a link out of the dataset is not published, and pictures have their prompts in them.
        if not row.private and not dataset.subset_of(row).is_reg
    ]


# -------------------------------------------------------------------------------- before the run


@dataclass(frozen=True)
class Judging:
    """What is drawn after each saved epoch, ``cells``: prompts with seeds, each with its kind as lora-grid has it; and
    how ``program`` is asked, with ``words`` behind the list of cells."""

    program: Path
    words: tuple[str, ...]
    cells: tuple[tuple[Prompt, str], ...]


def check_judging(settings: TrainSettings) -> None:
    """Raise ConfigError for options by which no epoch can be judged, MissingExtra without the program."""
    run = settings.run
    if run.by_figures is None:
        return
    if not run.saves_epochs:
        raise ConfigError(
            "early_stop_by: figures judge saved epochs, and none is saved; give --save_every_n_epochs 1"
        )
    if run.save_last_n_epochs is not None:
        raise ConfigError(
            "early_stop_by: any saved epoch may prove the best, and save_last_n_epochs removes them; leave it out"
        )
    if find_program(GRID) is None:
        raise MissingExtra(
            f"early_stop_by: figures are {GRID}'s, which is not installed beside this Python: pip install "
            f"'{PACKAGES[GRID]}' in the repository"
        )


def plan_judging(
    settings: TrainSettings, dataset: Dataset, prompts: Sequence[Prompt]
) -> tuple[Judging | None, list[str]]:
    """What ``--early_stop_by`` will do, None where it goes by the loss; and what the user should know. The program is
    tried with two small pictures.

    ``prompts``: the user's own. Raises ConfigError where nothing can be drawn, or the program refuses its options.
    """
    run = settings.run
    asked, program = run.by_figures, find_program(GRID)
    if asked is None or program is None:
        return None, []
    captions = own_captions(dataset)
    trigger = find_trigger(captions, run.metadata_trigger_phrase)
    if trigger is None or not trigger.seen:
        what = "no word is common enough in the captions to be the trigger"
        if trigger is not None:
            what = f"no caption has the trigger '{trigger.word}' of metadata_trigger_phrase"
        raise ConfigError(
            f"early_stop_by: {what}, so there is no prompt to draw; metadata_trigger_phrase names it"
        )
    made = make_prompts(captions, trigger.word, [prompt.text for prompt in prompts])
    width, height = (side // 8 * 8 for side in settings.data.size)
    like = next((prompt for prompt in prompts if prompt.text in made.asking), None)
    like = like or Prompt(text="", width=width, height=height, steps=STEPS)
    like = replace(like, sampler=like.sampler or run.sample_sampler)
    kinds = dict(kinds_of(made.asking, made.silent, made.others))
    first = run.seed if like.seed is None else like.seed
    cells = tuple(
        (replace(like, text=text, seed=first + number), kind)
        for text, kind in kinds.items()
        for number in range(made.seeds)
    )
    words = ("--best", "--json", "--quiet", "--trigger", trigger.word, *asked.options)
    judging = Judging(program, words, cells)
    _try(judging)
    return judging, [
        f"early_stop_by: the trigger is '{trigger.word}', in {trigger.seen} of {trigger.total} captions an epoch; "
        f"{len(cells)} pictures are drawn after each saved epoch"
    ]


def _try(judging: Judging) -> None:
    """Raise ConfigError where the program refuses what it will be asked."""
    from PIL import Image

    with TemporaryDirectory(prefix="lorapipe-") as folder:
        rows: list[Row] = []
        for name, colour in (("base", "grey"), ("trial", "white")):
            path = Path(folder, f"{name}.png")
            Image.new("RGB", (64, 64), colour).save(path)
            file = None if name == "base" else name
            rows += [_row(path, file, prompt, kind) for prompt, kind in judging.cells]
        cells = Path(folder, "cells.jsonl")
        cells.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        ran = run_program(judging.program, [str(cells), *judging.words], listen=True)
    if _answer(ran) is None:
        raise ConfigError(f"early_stop_by: {GRID}: {_complaint(ran)}")


def _row(path: Path, file: str | None, prompt: Prompt, kind: str) -> Row:
    """A cell as lora-grid reads it. ``file``: the network, None for the base."""
    strength = {} if file is None else {"weight": 1}
    return {"path": str(path), "file": file, **strength, **_described(prompt, kind)}


def _described(prompt: Prompt, kind: str) -> Row:
    return {
        "kind": kind,
        "prompt": prompt.text,
        "negative": prompt.negative,
        "seed": prompt.seed,
        "steps": prompt.steps,
        "cfg": prompt.scale,
        "size": f"{prompt.width}x{prompt.height}",
        "sampler": prompt.sampler or "",
    }


def _answer(ran: Ran) -> dict[str, Any] | None:
    """What lora-grid found, None where it failed; status 1 is that it cannot tell."""
    with suppress(NoJson):
        record = parse_json(ran.output) if ran.status in (0, 1) else None
        if isinstance(record, dict) and isinstance(record.get("best"), dict):
            return record
    return None


def _complaint(ran: Ran) -> str:
    lines = [line for line in ran.told.splitlines() if line.strip()]
    return lines[-1].removeprefix(f"{GRID}: error: ") if lines else f"ended with status {ran.status}"


# -------------------------------------------------------------------------------- while it runs


@dataclass(frozen=True)
class Verdict:
    """What lora-grid says of the epochs so far. ``values``: their ``figure``, by epoch; ``failed``: those that do not
    pass its gates; ``kept``: the one to take, or the earliest of those that it cannot tell apart; None where none
    passes; ``lines``: the same in words."""

    figure: str
    values: Mapping[int, float]
    failed: frozenset[int]
    kept: int | None
    lines: tuple[str, ...]

    @property
    def best(self) -> int | None:
        """The epoch of the highest figure, the earliest of equal ones; None where none passes the gates."""
        passing = [epoch for epoch in sorted(self.values) if epoch not in self.failed]
        return max(passing, key=lambda epoch: self.values[epoch], default=None)

    @property
    def worse(self) -> int:
        """How many epochs were judged after the best."""
        return sum(epoch > (self.best or 0) for epoch in self.values)

    @classmethod
    def of(cls, record: Mapping[str, Any], epochs: Mapping[str, int]) -> Verdict:
        """Out of lora-grid's record. ``epochs``: of the files of its networks."""
        best = record["best"]
        by_name = {row["name"]: epochs[row["values"]["file"]] for row in record["networks"]}
        named = [best["name"]] if best["name"] is not None else best["ties"]
        return cls(
            figure=best["figure"],
            values={by_name[row["name"]]: float(row["value"]) for row in best["values"]},
            failed=frozenset(by_name[name] for name in best["failed"]),
            kept=by_name[named[0]] if named else None,
            lines=tuple(record["lines"]),
        )


class Judge:
    """Draws and judges after each saved epoch, on the first process; all of them know what came of it."""

    def __init__(
        self,
        judging: Judging,
        run: RunSettings,
        network: Network,
        family: Family,
        objective: Objective,
        processes: Processes,
    ) -> None:
        self.judging = judging
        self.patience = run.early_stop or 0
        self._run = run
        self._network, self._family, self._objective = network, family, objective
        self._processes = processes
        self._folder = judged_folder(run)
        self._base: list[Row] = []
        self._kept: int | None = None
        self._told_of_missing = False

    def after_epoch(self, state: State, epoch: int, results: Results, *, last: bool) -> None:
        """Draw and judge if it is time to: after each epoch that is saved, and the ``last``."""
        if epoch % (self._run.save_every_n_epochs or 1) and not last:
            return
        with results.drawing():
            rows = self._rows(state, epoch) if results.writes else []
        try:
            best = self._judge(rows, state, epoch, results) if results.writes else [0.0] * 4
            if self._processes.count > 1:
                told = torch.tensor(best, dtype=torch.float64, device=self._family.device)
                self._processes.as_main([told])
                best = told.tolist()
            value, step, kept, worse = best
            # By all processes, for an optimizer that averages puts its weights to and fro.
            self._keep(round(kept), state, epoch, results)
        except ProblemFound:
            results.write_state()
            raise
        state.best = [value, step, kept] if kept else []
        state.worse, state.measured = round(worse), state.step

    def is_over(self, state: State) -> bool:
        """Whether the run ends here."""
        return state.worse >= self.patience

    def told(self, state: State, results: Results) -> list[str]:
        """Which epoch is the best and why, and whether the run ended for it, in lines."""
        rows = self._read(state) if results.writes else []
        if not rows:
            return []
        verdict = self._compare(rows)
        stopped = (
            f"stopped early after step {state.step}: no higher {verdict.figure} for {state.worse} epochs; "
        )
        stopped = stopped if self.is_over(state) else ""
        if not state.best:
            return [f"{stopped}no epoch passes every gate, so none is kept as the best", *verdict.lines]
        value, step, epoch = state.best
        best = f"best: {results.best_file}, after step {step:.0f} (epoch {epoch:.0f}): {verdict.figure} {value:.3g}"
        return [stopped + best, *verdict.lines]

    # ---------------------------------------------------------------- drawing

    def _rows(self, state: State, epoch: int) -> list[Row]:
        """Records of all cells: the base's, those of earlier epochs, and of this one, which are drawn."""
        if not self._base:
            with self._network.off():
                self._base = self._draw("base", None)
        file = epoch_file(self._folder, self._run.output_name, epoch).stem
        new = self._draw(f"e{epoch:06d}", file)
        for row in new:
            row |= {"run": state.began, "epoch": epoch, "step": state.step}
        rows = [*self._base, *self._earlier(state, epoch), *new]
        with atomic_write(self._cells, force=True, inside=self._run.output_dir) as target:
            target.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        return rows

    @property
    def _cells(self) -> Path:
        return self._folder / "cells.jsonl"

    def _draw(self, name: str, file: str | None) -> list[Row]:
        cells = self.judging.cells
        prompts = [prompt for prompt, _ in cells]
        pictures = draw(self._family, self._objective, prompts, sampler=self._run.sample_sampler)
        rows = []
        for number, ((prompt, kind), picture) in enumerate(zip(cells, pictures, strict=True)):
            path = self._folder / f"{name}_{number:02d}.png"
            with atomic_write(path, force=True, inside=self._run.output_dir) as target:
                picture.save(target, "PNG")
            rows.append(_row(path, file, prompt, kind))
        return rows

    def _earlier(self, state: State, epoch: int) -> list[Row]:
        """Records of the epochs before, of the same prompts. Those that are missing are told, once."""
        wanted = [_described(prompt, kind) for prompt, kind in self.judging.cells]
        rows: list[Row] = []
        judged = set()
        for number, group in groupby(self._read(state), key=lambda row: row["epoch"]):
            cells = list(group)
            described = [{name: row.get(name) for name in wanted[0]} for row in cells]
            if number < epoch and described == wanted and all(Path(row["path"]).is_file() for row in cells):
                rows += cells
                judged.add(number)
        every = self._run.save_every_n_epochs or 1
        missing = [str(number) for number in range(every, epoch, every) if number not in judged]
        if missing and not self._told_of_missing:
            say(
                f"note: early_stop_by: {self._folder} has no cells of these prompts from epoch {', '.join(missing)}, "
                "so they are not judged"
            )
            self._told_of_missing = True
        return rows

    def _read(self, state: State) -> list[Row]:
        """Records of the epochs that this run has drawn so far; none where there is no list of them."""
        with suppress(OSError, NoJson, UnicodeDecodeError):
            lines = self._cells.read_text(encoding="utf-8").splitlines()
            rows = [parse_json(line) for line in lines]
            return [row for row in rows if isinstance(row, dict) and row.get("run") == state.began]
        return []

    # ---------------------------------------------------------------- judging

    def _judge(self, rows: Sequence[Row], state: State, epoch: int, results: Results) -> list[float]:
        """Judge all cells and record this epoch: figure, step and number of the best (0 where there is none), and how
        many epochs were judged since the highest figure. Raises ProblemFound where it cannot be judged."""
        verdict = self._compare(rows)
        state.by = verdict.figure
        passes = float(epoch not in verdict.failed)
        tags = {f"figures/{verdict.figure}": verdict.values[epoch], "figures/passes": passes}
        results.log.scalars(state.step, tags)
        kept, worse = verdict.kept, float(verdict.worse)
        if kept is None:
            return [0.0, 0.0, 0.0, worse]
        step = next(row["step"] for row in rows if row.get("epoch") == kept)
        return [verdict.values[kept], float(step), float(kept), worse]

    def _keep(self, kept: int, state: State, epoch: int, results: Results) -> None:
        """Have the network of an epoch (0: of none) as the best. Raises ProblemFound where it is gone."""
        if not kept or kept == self._kept:
            return
        if kept == epoch:
            results.save_best(state.step, epoch)
        elif not results.keep_best_of(kept) and state.best[2:] != [kept]:
            raise ProblemFound(f"early_stop_by: epoch {kept} is the best so far, and its network was removed")
        self._kept = kept

    def _compare(self, rows: Sequence[Row]) -> Verdict:
        """What lora-grid says of the cells on the disk. Raises ProblemFound where it fails."""
        ran = run_program(self.judging.program, [str(self._cells), *self.judging.words], listen=True)
        record = _answer(ran)
        if record is None:
            raise ProblemFound(f"early_stop_by: {GRID}: {_complaint(ran)}")
        return Verdict.of(record, {row["file"]: row["epoch"] for row in rows if "epoch" in row})
