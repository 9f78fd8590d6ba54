"""Two checkpoints held against each other: layers that a LoRA can change, and all that differs besides."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lorapipe_engine.checkpoints.opened import Base
from lorapipe_engine.command.text import counted
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import quote
from lorapipe_engine.files.threads import map_in_threads
from lorapipe_engine.models.blocks import block_of
from lorapipe_engine.models.families import FAMILIES
from lorapipe_engine.models.keys import lora_name
from lorapipe_resize.extract.layers import (
    Tensor,
    Tensors,
    are_comparable,
    are_equal,
    distance,
    fit,
    tensors_of,
)
from lorapipe_resize.extract.targets import CONVOLUTIONS, category, is_target, spare_layers

_PARTS = {"unet": "the UNet", "te1": "the text encoder", "te2": "the second text encoder", "vae": "the VAE"}
SHOWN = 3


@dataclass(frozen=True)
class Layer:
    """A layer that takes a LoRA: its kohya name, block, and weight in both checkpoints. ``kernel``: () if linear."""

    name: str
    block: str
    tuned: Tensor
    base: Tensor
    kernel: tuple[int, ...]

    @property
    def conv(self) -> bool:
        """Whether the kernel is larger than 1x1."""
        return max(self.kernel, default=1) > 1

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the change."""
        rows, *rest = self.base.shape
        return rows, math.prod(rest)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Tensors of one kind that differ but are in no LoRA of these settings.

    ``change`` and ``norm`` are ‖tuned - base‖ and ‖base‖ over all of them; ``largest`` names that which differs most.
    """

    title: str
    count: int
    compared: int
    change: float
    norm: float
    largest: str


@dataclass
class Pair:
    """The plan of an extraction. ``rest`` are pairs of tensors that are no targets; ``notes`` say what has no pair."""

    family: str
    layers: list[Layer] = field(default_factory=list)
    rest: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def pair_up(tuned: Base, base: Base, *, conv: bool) -> Pair:
    """Match the tensors of both checkpoints by the layers they belong to.

    Raises InputError for models of different families, of different sizes, or without a layer in common.
    """
    if tuned.family != base.family:
        titles = [FAMILIES[b.family].title for b in (tuned, base)]
        raise InputError(
            f"{tuned.path} is {titles[0]}, {base.path} is {titles[1]}: a LoRA is made of two models of one family"
        )
    ours, theirs = tensors_of(tuned), tensors_of(base)
    pair = Pair(tuned.family)
    spare = _spare(ours, theirs)
    misfits: list[str] = []
    for name, tensor in ours.layers.items():
        other = theirs.layers.get(name)
        if other is None:
            continue
        part, path, kind = name
        if (
            kind == "weight"
            and is_target(part, path, conv=conv)
            and len(tensor.shape) > 1
            and path not in spare
        ):
            _check_sizes(tensor, other)
            pair.layers.append(_layer(tensor, other, tuned.family, ours, theirs))
        elif are_comparable(tensor, other):
            pair.rest.append((tensor, other))
        else:
            misfits.append(tensor.key)
    if not pair.layers:
        raise InputError(f"{tuned.path} and {base.path} have no layer in common that takes a LoRA")
    if misfits:
        pair.notes.append(
            f"not compared: {counted(len(misfits), 'tensor')} of other shapes: {_shown(misfits)}"
        )
    pair.notes += _notes(ours, theirs)
    return pair


def _layer(tensor: Tensor, other: Tensor, family: str, ours: Tensors, theirs: Tensors) -> Layer:
    part, path, _ = tensor.name
    layout = ours.layout if tensor.ldm_path else theirs.layout
    kernel = other.shape[2:]
    # Readers build SD 1.x with 1x1 convolutions around the attention, SD 2.x and XL with linear layers.
    if path.endswith((".proj_in", ".proj_out")) and kernel == (1, 1) and family != "sd1":
        kernel = ()
    name = lora_name(family, part, path, layout.layers_per_block)
    return Layer(name, block_of(part, tensor.ldm_path or other.ldm_path), tensor, other, kernel)


def _check_sizes(tensor: Tensor, other: Tensor) -> None:
    if not fit(tensor, other):
        sizes = [" x ".join(map(str, t.shape)) for t in (tensor, other)]
        raise InputError(
            f"{quote(tensor.key)[1:-1]} is {sizes[0]} in {tensor.file.path}, {sizes[1]} in {other.file.path}: "
            "the models are not of one architecture"
        )


def _spare(ours: Tensors, theirs: Tensors) -> frozenset[str]:
    """Paths of text encoder layers that no program runs, in either file."""
    spare: set[str] = set()
    for tensors in (ours, theirs):
        paths = [path for part, path, _ in tensors.layers if part == "te1"]
        numbers = spare_layers(tensors.base.family, "te1", paths, single_file=not tensors.base.folder)
        spare.update(
            p for p in paths if any(p.startswith(f"text_model.encoder.layers.{n}.") for n in numbers)
        )
    return frozenset(spare)


def _notes(ours: Tensors, theirs: Tensors) -> list[str]:
    """What the files have on one side only."""
    notes = []
    for here, there in ((ours, theirs), (theirs, ours)):
        missing = [name for name in here.layers if name not in there.layers]
        parts = Counter(part for part, _, _ in missing)
        for part, count in parts.items():
            if all(other != part for other, _, _ in there.layers):
                notes.append(
                    f"{there.base.path} has nothing of {_PARTS[part]}; {counted(count, 'tensor', 'are')} not compared"
                )
                continue
            names = [f"{path}.{kind}" for p, path, kind in missing if p == part]
            notes.append(
                f"only {here.base.path} has {counted(count, 'tensor')} of {_PARTS[part]}: {_shown(names)}"
            )
        if here.averages:
            notes.append(
                f"{here.base.path}: {counted(len(here.averages), 'EMA average', 'are')} passed over, "
                "its plain weights count"
            )
    for here, there in ((ours, theirs), (theirs, ours)):
        if unknown := sorted(set(here.others) - set(there.others)):
            notes.append(
                f"only {here.base.path} has {counted(len(unknown), 'tensor')} of no layer: {_shown(unknown)}"
            )
    return notes


def _shown(names: Sequence[str]) -> str:
    """The first few of many names, safe for a terminal."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(quote(name)[1:-1] for name in names[:SHOWN]) + more


# -------------------------------------------------------------------------------- what is left out


def compare_rest(pair: Pair) -> list[LeftOut]:
    """What differs outside the layers of the LoRA, by kind, the largest change first."""
    figures = map_in_threads(_compare, pair.rest, "comparing")
    sorts: dict[str, list[tuple[float, float, str]]] = {}
    for (tensor, _), (change, norm) in zip(pair.rest, figures, strict=True):
        part, path, kind = tensor.name
        sorts.setdefault(category(part, path, kind, len(tensor.shape)), []).append((change, norm, tensor.key))
    left_out = [_left_out(title, rows) for title, rows in sorts.items() if any(row[0] for row in rows)]
    return sorted(left_out, key=lambda row: -row.change)


def _compare(tensors: tuple[Tensor, Tensor]) -> tuple[float, float]:
    tuned, base = tensors
    return (0.0, 0.0) if are_equal(tuned, base) else distance(tuned, base)


def _left_out(title: str, rows: Sequence[tuple[float, float, str]]) -> LeftOut:
    changed = [row for row in rows if row[0]]
    return LeftOut(
        title=title,
        count=len(changed),
        compared=len(rows),
        change=math.sqrt(math.fsum(row[0] for row in changed)),
        norm=math.sqrt(math.fsum(row[1] for row in changed)),
        largest=max(changed)[2],
    )


def left_out_lines(rows: Sequence[LeftOut], *, conv: bool) -> Iterator[str]:
    """One line for each kind: how many, how far they differ, and what can be done."""
    for row in rows:
        share = (
            f"{100 * row.change / row.norm:.3g} % of their norm"
            if row.norm
            else f"{row.change:.3g} from zero"
        )
        advice = "; --conv-dim takes them in" if row.title == CONVOLUTIONS and not conv else ""
        yield (
            f"not in the LoRA: {row.count} of {row.compared} {row.title} differ, by {share} "
            f"(most: {quote(row.largest)[1:-1]}){advice}"
        )


def record_of(rows: Sequence[LeftOut]) -> list[Mapping[str, object]]:
    """The same for ``--json``."""
    return [vars(row) for row in rows]
