"""Draw the pictures of a plan: base by base, network by network, each written as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from lorapipe_engine.command.modes import Chosen
from lorapipe_engine.command.progress import Progress, progress
from lorapipe_engine.command.tool import complain
from lorapipe_engine.errors import ConfigError, InputError, LoraError, OutputError, ProblemFound
from lorapipe_engine.files.atomic import atomic_write
from lorapipe_engine.models.bases import resolve_base
from lorapipe_engine.models.predictions import EPSILON, FLOW
from lorapipe_engine.pictures.parameters import read_stored, save_with_parameters
from lorapipe_engine.sampling.cells import Cell, Hashes, Placed, cell_infotext
from lorapipe_engine.sampling.infotext import model_hash, network_hash
from lorapipe_engine.sampling.plan import Plan
from lorapipe_engine.sampling.report import write_cell
from lorapipe_engine.sampling.settings import DrawSettings, ResultSettings
from lorapipe_engine.train.base.load import load_base
from lorapipe_engine.train.base.out_of_memory import is_out_of_memory
from lorapipe_engine.train.base.vae_form import VaeForm
from lorapipe_engine.train.families import open_family
from lorapipe_engine.train.plan import DTYPES, choose_device, choose_precision
from lorapipe_engine.train.sample.networks import NetworkProblem
from lorapipe_engine.train.sample.picture import CellPainter, batch_key

LINE_EVERY = 30.0  # seconds

Say = Callable[[str], None]


def draw_plan(plan: Plan, chosen: Chosen, say: Say) -> int:
    """Draw what is not there yet, with a record of each cell to stdout as its picture is done; the exit status.

    Cells of a network or a base that cannot be used are left out, which is said, and the status is 1. Raises
    OutputError where a picture of other parameters is in the way, and InputError where the only base cannot be used.
    """
    return _Drawing(plan, chosen, say).run()


class _Drawing:
    def __init__(self, plan: Plan, chosen: Chosen, say: Say) -> None:
        self.plan, self.say = plan, say
        self.asked, self.result = chosen[DrawSettings], chosen[ResultSettings]
        self.broken: dict[Path, None] = {}
        self.left_out = 0
        self.texts: dict[Path, str] = {}
        self.cells: dict[Path, list[Placed]] = {}
        for placed in plan.cells:
            self.cells.setdefault(placed.path, []).append(placed)

    def run(self) -> int:
        waiting = self._waiting()
        if waiting:
            _make_folder(self.result.output_dir)
        groups = [
            (model, list(rows)) for model, rows in groupby(waiting, lambda row: (row.cell.base, row.cell.vae))
        ]
        with progress(len(waiting), "drawing", "pictures", LINE_EVERY) as bar:
            for (base, vae), rows in groups:
                try:
                    painter = self._open(base or "", vae, [row.cell for row in rows])
                except LoraError as error:
                    if len(groups) == 1:
                        raise
                    complain(f"{error}; {len(rows)} pictures of this base are left out")
                    self.left_out += len(rows)
                    continue
                self._draw_rows(painter, rows, bar)
                del painter
        if self.left_out:
            self.say(f"{self.left_out:,} of {len(self.plan.pictures):,} pictures were left out")
        return 1 if self.left_out else 0

    # ---------------------------------------------------------------- what is there

    def _waiting(self) -> list[Placed]:
        """The pictures to draw. Records of those that are there are written."""
        hashes = _Hashing()
        waiting: list[Placed] = []
        there: list[Placed] = []
        for placed in self.plan.pictures:
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
            self.say(f"{len(there):,} of {len(self.plan.pictures):,} pictures are there already")
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
        device = choose_device(self.asked.device)
        dtype = DTYPES[choose_precision(None, device)]
        told = cells[0].told
        model = load_base(
            resolve_base(base),
            vae=None if vae is None else resolve_base(vae),
            dtype=dtype,
            tokenizer_dir=self.asked.tokenizer_dir,
            vae_form=VaeForm(told.vae_scale, told.vae_shift, told.vae_reflects),
        )
        is_flow = told.flow_shift is not None
        if model.prediction_type is None and not is_flow:
            self.say(f"note: {base} does not tell what it predicts; taken as epsilon")
        family = open_family(model, device=device, dtype=dtype, vae_dtype=DTYPES["no"])
        if not family.facts.reads_clip_skip and any(cell.clip_skip > 1 for cell in cells):
            self.say(
                f"note: clip skip means nothing to {family.facts.title}; its pictures do not differ by it"
            )
        if model.prediction_type == FLOW.name and not is_flow:
            raise ConfigError(f"{base} predicts flow, which its files tell only now; give --flow-model")
        prediction = FLOW.name if is_flow else model.prediction_type or EPSILON.name
        painter = CellPainter(family, prediction, zero_terminal_snr=model.zero_terminal_snr)
        painter.check(cells)
        return painter

    def _draw_rows(self, painter: CellPainter, rows: Sequence[Placed], bar: Progress) -> None:
        for networks, group in groupby(rows, lambda row: row.cell.networks):
            pictures = list(group)
            broken = next((row.file.path for row in networks if row.file.path in self.broken), None)
            try:
                if broken is None:
                    painter.swapper.use(networks)
            except NetworkProblem as error:
                broken = error.path
                self._leave_out(broken, str(error), 0)
            if broken is not None:
                self.left_out += len(pictures)
                bar.update(len(pictures))
                continue
            for batch in _batches(pictures, self.asked.batch_size):
                self._draw_batch(painter, batch, bar)
        painter.swapper.clear()

    def _draw_batch(self, painter: CellPainter, batch: Sequence[Placed], bar: Progress) -> None:
        try:
            for placed, picture in zip(batch, painter.draw([row.cell for row in batch]), strict=True):
                with atomic_write(placed.path, force=self.asked.overwrite, wait=False) as file:
                    save_with_parameters(picture, file, placed.path.suffix, self.texts[placed.path])
                bar.update()
                self._record(placed.path)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            smaller = "--batch-size 1" if len(batch) > 1 else "a smaller --size"
            raise ProblemFound(
                f"memory ran out with {len(batch)} pictures at once: try {smaller}; pictures that are done are kept"
            ) from error

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


def _batches(pictures: Sequence[Placed], size: int) -> Iterator[list[Placed]]:
    """Pictures of one set of networks that can be drawn together, in their order as far as that goes."""
    alike: dict[tuple[object, ...], list[Placed]] = {}
    for placed in pictures:
        alike.setdefault(batch_key(placed.cell), []).append(placed)
    for rows in alike.values():
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


def _make_folder(folder: Path) -> None:
    """Make the folder of the pictures, where it is missing. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror}") from error
