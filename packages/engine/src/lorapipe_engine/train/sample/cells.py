"""Draw the pictures of a plan: base by base, network by network, each written as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

import torch

from lorapipe_engine.command.modes import Chosen
from lorapipe_engine.command.progress import Progress, progress
from lorapipe_engine.command.tool import complain
from lorapipe_engine.errors import ConfigError, InputError, LoraError, OutputError, ProblemFound
from lorapipe_engine.files.writing.atomic import atomic_write
from lorapipe_engine.models.bases import resolve_base
from lorapipe_engine.models.predictions import EPSILON, FLOW, V
from lorapipe_engine.nn.fused.drawing.decoder import fits_half
from lorapipe_engine.pictures.parameters import read_stored, save_with_parameters
from lorapipe_engine.sampling.bases import Told
from lorapipe_engine.sampling.cells import Cell, Hashes, Placed, cell_infotext
from lorapipe_engine.sampling.infotext import model_hash, network_hash
from lorapipe_engine.sampling.plan import Plan
from lorapipe_engine.sampling.report import write_cell
from lorapipe_engine.sampling.settings import DrawSettings, ModelSettings, ResultSettings
from lorapipe_engine.train.base.load import load_base
from lorapipe_engine.train.base.model import BaseModel
from lorapipe_engine.train.base.out_of_memory import is_out_of_memory
from lorapipe_engine.train.base.vae_form import VaeForm
from lorapipe_engine.train.families import open_family
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.plan import DTYPES, choose_device, choose_precision
from lorapipe_engine.train.processes import Processes, join_sharing, own_device
from lorapipe_engine.train.sample.batching import batches
from lorapipe_engine.train.sample.forecast import Forecast
from lorapipe_engine.train.sample.networks import NetworkProblem
from lorapipe_engine.train.sample.picture import CellPainter, Drawn, NoPicture
from lorapipe_engine.train.sample.writing import Writer

LINE_EVERY = 30.0  # seconds
KEPT = "pictures that are done are kept"

Say = Callable[[str], None]


def draw_plan(plan: Plan, chosen: Chosen, say: Say) -> int:
    """Draw what is not there yet, with a record of each cell to stdout as its picture is done; the exit status.

    Cells of a network or a base that cannot be used are left out, which is said, and the status is 1. Raises
    OutputError where a picture of other parameters is in the way, and InputError where the only base cannot be used.
    Of several processes each draws its own run of the pictures, and the status is that of all.
    """
    processes = join_sharing()
    drawing = _Drawing(plan, chosen, say, processes)
    drawing.run()
    left_out = torch.tensor(drawing.left_out)
    processes.add_up(
        [left_out]
    )  # a launcher ends the others when one process ends with another status than 0
    if left_out:
        say(f"{int(left_out):,} of {len(plan.pictures):,} pictures were left out")
    return int(left_out > 0)


class _Drawing:
    def __init__(self, plan: Plan, chosen: Chosen, say: Say, processes: Processes) -> None:
        self.say, self.processes = say, processes
        # One run of them each, so that few processes load the same network or base.
        own = processes.rows(len(plan.pictures))
        self.pictures = plan.pictures[own.start : own.stop]
        self.has_one_base = len({(row.cell.base, row.cell.vae) for row in plan.pictures}) == 1
        self.asked, self.result = chosen[DrawSettings], chosen[ResultSettings]
        self.models = chosen[ModelSettings]
        self.broken: dict[Path, None] = {}
        self.without_numbers: set[Path] = set()
        self.left_out = 0
        self.texts: dict[Path, str] = {}
        self.cells: dict[Path, list[Placed]] = {}
        self.writer: Writer
        self.forecast: Forecast
        for placed in plan.cells:
            self.cells.setdefault(placed.path, []).append(placed)

    def run(self) -> None:
        waiting = self._waiting()
        if waiting:
            _make_folder(self.result.output_dir)
        self.forecast = Forecast([row.cell for row in waiting], self.say)
        groups = [
            (model, list(rows)) for model, rows in groupby(waiting, lambda row: (row.cell.base, row.cell.vae))
        ]
        with progress(len(waiting), "drawing", "pictures", LINE_EVERY) as bar, Writer() as self.writer:
            for (base, vae), rows in groups:
                try:
                    painter = self._open(base or "", vae, [row.cell for row in rows])
                except LoraError as error:
                    # What only this process cannot draw must not end the others.
                    if len(groups) == 1 and (self.processes.count == 1 or self.has_one_base):
                        raise
                    complain(f"{error}; {len(rows)} pictures of this base are left out")
                    self.left_out += len(rows)
                    continue
                self._draw_rows(painter, rows, bar)
                self.writer.finish()
                del painter

    # ---------------------------------------------------------------- what is there

    def _waiting(self) -> list[Placed]:
        """The pictures to draw. Records of those that are there are written."""
        hashes = _Hashing()
        waiting: list[Placed] = []
        there: list[Placed] = []
        for placed in self.pictures:
            try:
                text = cell_infotext(placed.cell, hashes.of(placed.cell))
            except NetworkProblem as error:
                self._leave_out(error.path, str(error), 1)
                continue
            self.texts[placed.path] = text
            if not placed.path.exists():
                waiting.append(placed)
            elif read_stored(placed.path) == text:
                there.append(placed)
            elif self._may_replace(placed.path):
                waiting.append(placed)
        if there:
            self.say(f"{len(there):,} of {len(self.pictures):,} pictures are there already")
        for placed in there:
            self._record(placed.path)
        return waiting

    def _may_replace(self, path: Path) -> bool:
        """Whether a picture of other parameters is replaced. Raises OutputError where that was not asked for."""
        if self.asked.overwrite:
            return True
        raise OutputError(
            f"{path}: is there with other parameters or none; --overwrite replaces it, or give another --output-dir"
        )

    # ---------------------------------------------------------------- drawing

    def _open(self, base: str, vae: str | None, cells: Sequence[Cell]) -> CellPainter:
        count = self.processes.count
        device = choose_device(self.asked.device) if count == 1 else own_device(self.asked.device, count)
        dtype = DTYPES[choose_precision(None, device)]
        told = cells[0].told
        model = load_base(
            resolve_base(base),
            vae=None if vae is None else resolve_base(vae),
            dtype=dtype,
            tokenizer_dir=self.asked.tokenizer_dir,
            vae_form=VaeForm(told.vae_scale, told.vae_shift, told.vae_reflects),
        )
        prediction, has_no_signal = self._prediction(model, told)
        family = open_family(model, device=device, dtype=dtype, vae_dtype=DTYPES["no"])
        if not family.facts.reads_clip_skip and any(cell.clip_skip > 1 for cell in cells):
            self.say(
                f"note: clip skip means nothing to {family.facts.title}; its pictures do not differ by it"
            )
        painter = CellPainter(
            family,
            prediction,
            zero_terminal_snr=has_no_signal,
            say=self.say,
            forecast=self.forecast,
            decoding=self._decoding(family),
        )
        painter.check(cells)
        return painter

    def _decoding(self, family: Family) -> torch.dtype | None:
        """The half precision to decode in; None is float32."""
        asked = self.asked.vae_precision
        if self.asked.no_half_vae:
            asked = "float"
        if asked is None:
            asked = "fp16" if family.device.type == "cuda" and fits_half(family.vae) else "float"
        if asked == "float":
            return None
        if not fits_half(family.vae):
            self.say(f"note: this VAE is of an unusual make; decoded in float32 instead of {asked}")
            return None
        return DTYPES[asked]

    def _prediction(self, model: BaseModel, told: Told) -> tuple[str, bool]:
        """What the base predicts, and whether it begins without any signal: as asked for, else as its files say."""
        if told.flow_shift is not None:
            return FLOW.name, False
        asked_v, asked_end = self.models.v_prediction, self.models.zero_terminal_snr
        prediction = model.prediction_type
        if asked_v is not None:
            prediction = V.name if asked_v else EPSILON.name
        elif prediction == FLOW.name:
            raise ConfigError(
                f"{model.source} predicts flow, which its files tell only now; give --flow-model"
            )
        elif prediction is None:
            self.say(
                f"note: {model.source} does not tell what it predicts; taken as epsilon, --v-prediction changes it"
            )
        return prediction or EPSILON.name, model.zero_terminal_snr if asked_end is None else asked_end

    def _draw_rows(self, painter: CellPainter, rows: Sequence[Placed], bar: Progress) -> None:
        groups = [(networks, list(group)) for networks, group in groupby(rows, lambda row: row.cell.networks)]
        for (networks, pictures), (following, _) in zip(groups, [*groups[1:], ((), [])], strict=True):
            broken = next((row.file.path for row in networks if row.file.path in self.broken), None)
            try:
                if broken is None:
                    painter.swapper.use(networks)
            except NetworkProblem as error:
                broken = error.path
                self._leave_out(broken, str(error), 0)
            painter.swapper.expect(row.file.path for row in following)
            if broken is not None:
                self.left_out += len(pictures)
                bar.update(len(pictures))
                continue
            for batch in batches(pictures, self.asked.batch_size, painter.family):
                self._draw_batch(painter, batch, bar)
        painter.swapper.clear()

    def _draw_batch(self, painter: CellPainter, batch: Sequence[Placed], bar: Progress) -> None:
        """Draw pictures, fewer at once where memory runs out and the number was not asked for."""
        rest = list(batch)
        # Closed here: an interrupt that comes while Python closes it by itself would be lost.
        with closing(painter.draw([row.cell for row in batch])) as drawn:
            while rest:
                try:
                    picture = next(drawn)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    if len(batch) == 1 or self.asked.batch_size is not None:
                        smaller = "--batch-size 1" if len(batch) > 1 else "a smaller --size"
                        raise ProblemFound(
                            f"memory ran out with {len(batch)} pictures at once: try {smaller}; {KEPT}"
                        ) from error
                    break
                path = rest.pop(0).path
                # Outside: what goes wrong with a picture before is not this batch's.
                self.writer.add(partial(self._write, path, picture), partial(self._done, path, bar))
        if not rest:
            return
        # Outside of the handler, whose traceback keeps what was made.
        fewer = len(batch) // 2
        self.asked = replace(self.asked, batch_size=fewer)
        self.say(f"note: memory ran out with {len(batch)} pictures at once; {fewer} are drawn from here on")
        del drawn
        painter.free_memory()
        for smaller_batch in batches(rest, fewer, painter.family):
            self._draw_batch(painter, smaller_batch, bar)

    def _write(self, path: Path, drawn: Drawn) -> None:
        try:
            picture = drawn.image()
            with atomic_write(path, force=self.asked.overwrite, wait=False) as file:
                save_with_parameters(picture, file, path.suffix, self.texts[path])
        except NoPicture:
            self.without_numbers.add(path)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            # Another kind of error than that of a batch, which would be drawn once more in parts.
            raise ProblemFound(
                f"memory ran out while {path.name} was written: try --batch-size 1 or a smaller --size; {KEPT}"
            ) from error

    def _done(self, path: Path, bar: Progress) -> None:
        bar.update()
        if path in self.without_numbers:
            self._tell_without_numbers(path)
        else:
            self._record(path)

    def _tell_without_numbers(self, path: Path) -> None:
        self.left_out += 1
        cell = self.cells[path][0].cell
        names = " with ".join([f"{cell.base}", *(f"{row.file.path}" for row in cell.networks)])
        complain(f"{path.name}: {names} gives no numbers (NaN); this picture is left out")

    def _record(self, path: Path) -> None:
        for placed in self.cells[path]:
            write_cell(placed, as_json=self.result.as_json)

    def _leave_out(self, path: Path, why: str, pictures: int) -> None:
        """Say once what is wrong with a network, whose pictures are left out."""
        if path not in self.broken:
            complain(f"{why}; its pictures are left out")
        self.broken[path] = None
        self.left_out += pictures


class _Hashing:
    """Hashes of the files of cells, each read once."""

    def __init__(self) -> None:
        self._models: dict[str | None, str | None] = {None: None}
        self._networks: dict[Path, str | InputError] = {}

    def of(self, cell: Cell) -> Hashes:
        """Raises NetworkProblem for a network that cannot be read, InputError for a base."""
        return Hashes(self._model(cell.base), self._model(cell.vae), self._of_networks(cell))

    def _model(self, name: str | None) -> str | None:
        if name not in self._models:
            path = resolve_base(name or "")
            is_file = isinstance(path, Path) and path.is_file()
            self._models[name] = model_hash(Path(path)) if is_file else None
        return self._models[name]

    def _of_networks(self, cell: Cell) -> Mapping[Path, str]:
        digits: dict[Path, str] = {}
        for path in (row.file.path for row in cell.networks):
            if path not in self._networks:
                try:
                    self._networks[path] = network_hash(path)
                except InputError as error:
                    self._networks[path] = error
            known = self._networks[path]
            if isinstance(known, InputError):
                raise NetworkProblem(path, str(known))
            digits[path] = known
        return digits


def _make_folder(folder: Path) -> None:
    """Make the folder of the pictures, where it is missing. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror}") from error
