"""From axes to cells: values looked up, seeds drawn, prompts resolved, the base put beside the networks."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count, product
from math import prod
from pathlib import Path
from typing import Any

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.sampling.axes import KINDS, Axis, Value
from lorapipe_engine.sampling.bases import NOTHING_TOLD, Told, check_model, says_flow, trained_size
from lorapipe_engine.sampling.cells import Cell, Placed, Slot
from lorapipe_engine.sampling.checks import check_number, read_size
from lorapipe_engine.sampling.noise.samplers import (
    Sampler,
    check_flow,
    count_evaluations,
    find_sampler,
    true_schedule,
)
from lorapipe_engine.sampling.noise.schedules import find_schedule
from lorapipe_engine.sampling.prompts.editing import refuse_editing
from lorapipe_engine.sampling.prompts.tags import refuse_tags, split_tags, tag_notes
from lorapipe_engine.sampling.prompts.wildcards import Wildcards, draw_prompt
from lorapipe_engine.sampling.shelf import (
    NO_NETWORK,
    Loaded,
    NetworkFile,
    Shelf,
    check_strength,
    expand_files,
    split_together,
)

FLOW_SHIFT = 3.0  # as users of SDXL flow models draw
MOST_CELLS = 100_000
LARGEST_SEED = 4294967294  # A1111 draws below it
STRENGTHS = ("weight", "unet", "te")


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """What no axis changes. ``networks``: files with their strengths, in every picture. ``flow_model``: the user says
    that the base is one."""

    prompt: str
    negative: str
    networks: tuple[tuple[Path, float], ...]
    seed: int
    steps: int
    sampler: str | None
    schedule: str
    cfg: float
    eta: float | None
    size: str | None
    clip_skip: int
    base: str | None
    vae: str | None
    flow_model: bool = False
    told: Told = NOTHING_TOLD
    v_prediction: bool | None = None
    zero_terminal_snr: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How a plan is made. ``kinds``: what a prompt of the prompt axis is for, by the prompt (see probes)."""

    wildcards: Wildcards = field(default_factory=Wildcards)
    folders: tuple[Path, ...] = ()
    draw_seed: int = 0
    base_column: bool = True
    output_dir: Path = Path("samples")
    suffix: str = ".png"
    kinds: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Cells in the order of their axes, the first axis fastest. ``notes``: what the user should know of them."""

    axes: tuple[Axis, ...]
    cells: tuple[Placed, ...]
    notes: tuple[str, ...] = ()

    @cached_property
    def pictures(self) -> tuple[Placed, ...]:
        """One place of each picture, in an order in which dear things change seldom: base, VAE, networks, size."""
        first = {placed.path: placed for placed in reversed(self.cells)}
        order = {path: number for number, path in enumerate(dict.fromkeys(row.path for row in self.cells))}

        def dearness(placed: Placed) -> tuple[object, ...]:
            cell = placed.cell
            networks = tuple((str(row.file.path), row.te, row.unet) for row in cell.networks)
            return cell.base or "", cell.vae or "", networks, cell.width, cell.height, order[placed.path]

        return tuple(sorted(first.values(), key=dearness))

    @property
    def evaluations(self) -> int:
        """Of the model, in all pictures; guidance takes two in one."""
        return sum(
            count_evaluations(find_sampler(row.cell.sampler)[0], row.cell.steps) for row in self.pictures
        )


def make_plan(axes: Sequence[Axis], fixed: Fixed, wishes: Wishes) -> Plan:
    """The plan of all combinations of the axes' values.

    Raises ConfigError for a value that is none, two axes of one kind, a search that finds nothing, too many cells;
    InputError for files that are not there.
    """
    return _Planner(fixed, wishes).plan(axes)


@dataclass
class _Draft:
    """A cell in the making. ``files``: networks by their number from 1; ``strengths``: (te, unet) by the same."""

    fixed: Fixed
    files: dict[int, tuple[NetworkFile, ...]]
    strengths: dict[int, tuple[float, float]]
    searches: list[tuple[Axis, str]] = field(default_factory=list)


class _Planner:
    def __init__(self, fixed: Fixed, wishes: Wishes) -> None:
        self.fixed, self.wishes = fixed, wishes
        self.seeds = random.Random(f"seeds {wishes.draw_seed}")
        self.shelf = Shelf(wishes.folders)
        for path, _ in fixed.networks:
            self.shelf.add(path)
        self.chosen: dict[str, tuple[NetworkFile, ...]] = {NO_NETWORK: ()}
        self.notes: dict[str, None] = {}

    def plan(self, axes: Sequence[Axis]) -> Plan:
        axes = _with_own_titles(axes)
        _refuse_overridden(axes)
        self._check_numbers(axes)
        groups = {axis.title: self._groups(axis) for axis in axes if axis.kind.name == "file"}
        axes = [self._looked_up(axis, groups.get(axis.title)) for axis in axes]
        cells_in_all = prod(len(axis.values) for axis in axes)
        if cells_in_all > MOST_CELLS:
            raise ConfigError(f"{cells_in_all:,} cells are more than {MOST_CELLS:,}; give fewer values")
        self.fixed = replace(self.fixed, seed=self._seed(self.fixed.seed, "seed"))
        paths: dict[Cell, Path] = {}
        cells = [self._place(axes, indices, paths) for indices in _combinations(axes)]
        return Plan(tuple(axes), tuple(cells), tuple(self.notes))

    # ---------------------------------------------------------------- axes

    def _looked_up(self, axis: Axis, groups: Sequence[tuple[Path, ...]] | None) -> Axis:
        """The axis with the values that records have: names of files and samplers, seeds that are drawn."""
        name = axis.kind.name
        if groups is not None:
            return replace(axis, values=tuple(map(self._label, groups)), columns=())
        places = [axis.place_of(index) for index in range(len(axis.values))]
        rows = zip(axis.values, places, strict=True)
        if name == "seed":
            return replace(axis, values=tuple(self._seed(int(value), place) for value, place in rows))
        if name == "sampler":
            values = tuple(_sampler_label(str(value), place) for value, place in rows)
            return replace(axis, values=values)
        if name == "schedule":
            return replace(axis, values=tuple(find_schedule(str(value), place) for value, place in rows))
        if name == "size":
            sizes = [read_size(str(value), place) for value, place in rows]
            return replace(axis, values=tuple(f"{width}x{height}" for width, height in sizes))
        if axis.kind.form != "text":
            for value, place in rows:
                check_number(name, float(value), place)
        return axis

    def _check_numbers(self, axes: Sequence[Axis]) -> None:
        """Raise ConfigError for an axis of strengths that no network has."""
        taken = {axis.number for axis in axes if axis.kind.name == "file"}
        known = taken | set(self._numbered(taken))
        for axis in axes:
            if axis.kind.name in STRENGTHS and axis.number not in known:
                which = "no network" if not known else f"no network {axis.number}"
                raise ConfigError(
                    f"{axis.where}: there is {which} for the axis {axis.title}; name it, as run/*.safetensors or "
                    "by --network (a strength in a prompt's <lora:...> is changed by an axis sr)"
                )

    def _numbered(self, taken: Collection[int]) -> dict[int, tuple[Path, float]]:
        """The networks of every picture by their numbers, which axes of files leave free."""
        free = (number for number in count(1) if number not in taken)
        return dict(zip(free, self.fixed.networks, strict=False))

    def _groups(self, axis: Axis) -> list[tuple[Path, ...]]:
        """The files of each value of an axis of networks, the base by itself before them."""
        groups: list[tuple[Path, ...]] = []
        for index, value in enumerate(axis.values):
            place = axis.place_of(index)
            if str(value).lower() in (NO_NETWORK.lower(), "base"):
                groups.append(())
                continue
            words = split_together(str(value))
            files = [expand_files(word, place) for word in words]
            if len(files) > 1:
                groups.append(tuple(path for row in files for path in row))
            else:
                groups += [(path,) for path in files[0]]
        if self.wishes.base_column and () not in groups:
            groups.insert(0, ())
        for path in (path for group in groups for path in group):
            self.shelf.add(path)
        return list(dict.fromkeys(groups))

    def _label(self, group: tuple[Path, ...]) -> str:
        files = tuple(self.shelf.file(path) for path in group)
        label = " + ".join(file.name for file in files) or NO_NETWORK
        self.chosen[label] = files
        return label

    def _seed(self, seed: int, place: str) -> int:
        if seed == -1:
            return self.seeds.randrange(LARGEST_SEED)
        check_number("seed", seed, place)
        return seed

    # ---------------------------------------------------------------- cells

    def _place(self, axes: Sequence[Axis], indices: Sequence[int], paths: dict[Cell, Path]) -> Placed:
        numbered = self._numbered({axis.number for axis in axes if axis.kind.name == "file"})
        draft = _Draft(
            self.fixed,
            {number: (self.shelf.file(path),) for number, (path, _) in numbered.items()},
            {number: (strength, strength) for number, (_, strength) in numbered.items()},
        )
        values: dict[str, Value] = {}
        for axis, index in zip(axes, indices, strict=True):
            values[axis.title] = axis.values[index]
            self._apply(draft, axis, index)
        cell = self._cell(draft)
        if cell not in paths:
            name = f"{len(paths):05d}-{cell.seed}{self.wishes.suffix}"
            paths[cell] = self.wishes.output_dir / name
        kind = self.wishes.kinds.get(draft.fixed.prompt)
        return Placed(values, cell, paths[cell], tuple(_slots(draft, cell)), kind)

    def _apply(self, draft: _Draft, axis: Axis, index: int) -> None:
        name, value = axis.kind.name, axis.values[index]
        if name == "file":
            draft.files[axis.number] = self.chosen[str(value)]
        elif name in STRENGTHS:
            te, unet = draft.strengths.get(axis.number, (1.0, 1.0))
            strength = check_strength(value, axis.where)
            pair = {"weight": (strength, strength), "te": (strength, unet), "unet": (te, strength)}[name]
            draft.strengths[axis.number] = pair
        elif name == "sr":
            draft.searches.append((axis, str(value)))
        elif name == "sampler":
            sampler, schedule = find_sampler(str(value))
            draft.fixed = replace(draft.fixed, sampler=sampler.name)
            if schedule is not None:
                draft.fixed = replace(draft.fixed, schedule=schedule)
        elif name == "vae":
            own = str(value).lower() in ("none", "automatic")  # A1111's words for the base's own
            draft.fixed = replace(draft.fixed, vae=None if own else str(value))
        else:
            change: dict[str, Any] = {name.replace(" ", "_"): value}
            draft.fixed = replace(draft.fixed, **change)

    def _cell(self, draft: _Draft) -> Cell:
        fixed = draft.fixed
        prompt, negative = self._words(draft)
        text, tags = split_tags(prompt, "prompt")
        asked = [Loaded(self.shelf.find(tag.name, "prompt"), tag.te, tag.unet, True) for tag in tags]
        is_flow = fixed.flow_model or (fixed.v_prediction is None and says_flow(fixed.base))
        sampler, old_schedule = find_sampler(fixed.sampler or ("Euler" if is_flow else "Euler a"))
        count_evaluations(sampler, fixed.steps)
        width, height = read_size(fixed.size or trained_size(fixed.base), "size")
        for model in (fixed.base, fixed.vae):
            if model is not None:
                check_model(model)
        schedule = true_schedule(sampler, old_schedule or fixed.schedule)
        eta = fixed.eta
        if eta is not None and sampler.eta is None:
            raise ConfigError(f"eta: {sampler.name} scales no noise; leave it out")
        networks = (*self._loaded(draft), *(row for row in asked if row.te or row.unet))
        if not is_flow:
            self._note_flow(networks)
        return Cell(
            prompt=prompt,
            text=text,
            negative=negative,
            networks=networks,
            seed=fixed.seed,
            steps=fixed.steps,
            sampler=sampler.name,
            schedule=schedule,
            cfg=fixed.cfg,
            eta=sampler.eta if eta is None else eta,
            width=width,
            height=height,
            clip_skip=fixed.clip_skip,
            base=fixed.base,
            vae=fixed.vae,
            v_prediction=fixed.v_prediction,
            zero_terminal_snr=fixed.zero_terminal_snr,
            told=replace(fixed.told, flow_shift=_flow_shift(fixed, sampler, schedule, is_flow=is_flow)),
        )

    def _note_flow(self, networks: Sequence[Loaded]) -> None:
        """Say which networks were trained on flow and are drawn with a base that is taken as none of it."""
        names = [row.file.name for row in networks if says_flow(str(row.file.path))]
        self.notes |= dict.fromkeys(
            f"{name} was trained on a base that predicts flow; give --flow-model if this is one"
            for name in names
        )

    def _loaded(self, draft: _Draft) -> Iterator[Loaded]:
        """The networks by their number; those of strength 0 change nothing and are left out."""
        for number, files in sorted(draft.files.items()):
            te, unet = draft.strengths.get(number, (1.0, 1.0))
            if te or unet:
                yield from (Loaded(file, te, unet) for file in files)

    def _words(self, draft: _Draft) -> tuple[str, str]:
        """Prompt and negative with texts replaced and choices drawn, checked for what is not supported."""
        fixed = draft.fixed
        prompt, negative = fixed.prompt, fixed.negative
        for axis, value in draft.searches:
            if axis.search not in prompt and axis.search not in negative:
                raise ConfigError(
                    f"{axis.where}: '{axis.search}' is neither in the prompt nor in the negative one"
                    + (", or another axis has replaced it" if len(draft.searches) > 1 else "")
                )
            prompt, negative = (text.replace(axis.search, value) for text in (prompt, negative))
        wildcards = self.wishes.wildcards
        prompt = draw_prompt(prompt, fixed.seed, wildcards, "prompt", stream=fixed.prompt)
        negative = draw_prompt(negative, fixed.seed, wildcards, "negative", stream=fixed.negative)
        refuse_tags(negative, "negative")
        self.notes |= dict.fromkeys(f"prompt: {note}" for note in tag_notes(prompt))
        refuse_editing(split_tags(prompt, "prompt")[0], "prompt")
        refuse_editing(negative, "negative", is_negative=True)
        return prompt, negative


def _slots(draft: _Draft, cell: Cell) -> Iterator[Slot]:
    for number, files in sorted(draft.files.items()):
        te, unet = draft.strengths.get(number, (1.0, 1.0))
        yield Slot(number, " + ".join(file.name for file in files) or NO_NETWORK, te, unet)
    asked = [row for row in cell.networks if row.from_prompt]
    for number, row in enumerate(asked, max(draft.files, default=0) + 1):
        yield Slot(number, row.file.name, row.te, row.unet)


def with_base_weight(axis: Axis) -> Axis:
    """A weight axis with 0, the base by itself, in front."""
    is_weight = axis.kind.name == "weight" and axis.number == 1
    return (
        axis if not is_weight or 0.0 in axis.values else replace(axis, values=(0.0, *axis.values), columns=())
    )


def file_axis(words: Sequence[str], where: str) -> Axis:
    """The axis of networks that are named by themselves."""
    return Axis(KINDS["file"], tuple(words), where, "file")


def _with_own_titles(axes: Sequence[Axis]) -> list[Axis]:
    """The axes, of which only replacing ones may be of one kind: they are numbered."""
    titles: dict[str, Axis] = {}
    for axis in axes:
        title, number = axis.title, 2
        while axis.kind.name == "sr" and title in titles:
            title, number = f"{axis.title} {number}", number + 1
        if title in titles:
            raise ConfigError(f"{axis.where}: {titles[title].where} is the axis {title} already")
        titles[title] = axis
    return [replace(axis, title=title) for title, axis in titles.items()]


def _refuse_overridden(axes: Sequence[Axis]) -> None:
    """Raise ConfigError for two axes of which one would undo the other."""
    for axis in axes:
        parts = [row for row in axes if row.kind.name in ("te", "unet") and row.number == axis.number]
        if axis.kind.name == "weight" and parts:
            raise ConfigError(
                f"{parts[0].where}: {axis.where} is the axis {axis.title}, which sets both strengths; "
                "give te and unet in its place"
            )


def _combinations(axes: Sequence[Axis]) -> Iterator[tuple[int, ...]]:
    """Indices of values by axis, the first axis fastest."""
    for row in product(*(range(len(axis.values)) for axis in reversed(axes))):
        yield row[::-1]


def _flow_shift(fixed: Fixed, sampler: Sampler, schedule: str, *, is_flow: bool) -> float | None:
    """The shift of a flow model's levels; None where the base is none.

    Raises ConfigError for a sampler or a schedule that a flow model cannot be drawn with, and a shift without one.
    """
    shift = fixed.told.flow_shift
    if not is_flow and shift is not None:
        raise ConfigError("flow_shift: is for flow models; give --flow-model if the base is one")
    if not is_flow:
        return None
    if fixed.v_prediction or fixed.zero_terminal_snr:
        raise ConfigError(
            "flow_model: a base predicts flow or v; leave v_prediction and zero_terminal_snr out"
        )
    check_flow(sampler, schedule)
    return FLOW_SHIFT if shift is None else shift


def _sampler_label(name: str, place: str) -> str:
    sampler, schedule = find_sampler(name, place)
    return sampler.name if schedule is None else f"{sampler.name} {schedule}"
