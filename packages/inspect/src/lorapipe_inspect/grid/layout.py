"""Axes out of cells: which values vary, in which order and under which labels, and which cell lies where.

A cell without a value on an axis has a place of its own there: the base on the axis ``file``. Of strengths beside that
axis it lies at every place: the base has no weight, so one picture of it serves all weights.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from lorapipe_engine.command.configuration import nearest
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_inspect.grid.cells import FIELDS, NETWORK, Cell, Value, is_base, plain_name
from lorapipe_inspect.text import short_names, without_suffix

BASE = "base"  # the label of cells without a network
_PATHS = ("file", "base", "vae")
MOST_PLACES = 50_000  # of columns and rows together
PICTURE = "picture"  # an axis for cells that nothing else tells apart
_NUMBER = re.compile(r"(\d+)")
_EPOCH = re.compile(r"(?:-|_|-e|_epoch|-step)?(\d{4,8})$")
# Files are columns and weights rows, where both are axes; then what people compare most.
_ORDER = ("file", "weight", "unet", "te", "trigger", "seed", "prompt", *FIELDS)


@dataclass(frozen=True)
class Axis:
    """Something that varies. ``values`` in their order; None is the base, of which there is one picture at most."""

    name: str
    values: tuple[Value | None, ...]
    labels: tuple[str, ...]

    @property
    def title(self) -> str:
        return TITLES.get(self.name, self.name.replace("_", " "))


TITLES = {"cfg": "CFG", "te": "text encoder", "unet": "U-Net", "vae": "VAE"}


@dataclass(frozen=True)
class Grid:
    """Cells by their place: for each axis the number of the value. ``axes``: columns, rows, then sheets."""

    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    places: Mapping[tuple[int, ...], int]

    def at(self, place: Sequence[int]) -> Cell | None:
        """The cell of a place, None where none is."""
        index = self.places.get(tuple(place))
        return None if index is None else self.cells[index]

    def sheets(self) -> list[tuple[int, ...]]:
        """The places on the axes behind columns and rows that have a cell, in order."""
        return sorted({place[2:] for place in self.places})

    def check_size(self) -> None:
        """Raise InputError where columns and rows have far more places than can be shown."""
        wide, high = ([len(axis.values) for axis in self.axes[:2]] + [1, 1])[:2]
        if wide * high > MOST_PLACES:
            names = " and ".join(axis.title for axis in self.axes[:2])
            raise InputError(
                f"{names} make {wide * high:,} places for {len(self.cells):,} cells, more than {MOST_PLACES:,}; "
                "name other axes (--x, --y) or fewer cells"
            )

    def axis(self, name: str) -> Axis | None:
        return next((axis for axis in self.axes if axis.name == name), None)


def lay_out(cells: Sequence[Cell], x: str | None = None, y: str | None = None) -> Grid:
    """A grid of all cells; ``x`` and ``y`` name its columns and rows, else files and weights are, or what varies.

    Raises ConfigError for an axis that the cells have not.
    """
    cells = tuple(cells)
    names = _telling_axes(cells)
    cells, names = _numbered(cells, names)
    axes = [_axis(name, cells, names) for name in names]
    axes = _first(axes, cells, x, y)
    return Grid(tuple(axes), cells, _places(axes, cells))


def _first(axes: list[Axis], cells: Sequence[Cell], x: str | None, y: str | None) -> list[Axis]:
    """The axes with the columns' and the rows' in front."""
    named = [_named(option, word, axes, cells) for option, word in (("--x", x), ("--y", y))]
    if named[0] is not None and named[0] == named[1]:
        raise ConfigError(f"--y {y}: the columns have this axis already")
    rest = [axis for axis in axes if axis not in named]
    front = [one or (rest.pop(0) if rest else None) for one in named]
    return [*(axis for axis in front if axis is not None), *rest]


def _named(option: str, word: str | None, axes: Sequence[Axis], cells: Sequence[Cell]) -> Axis | None:
    """The axis that an option names; one that follows from others too."""
    if word is None:
        return None
    name = plain_name(word)
    known = {axis.name: axis for axis in axes}
    if name not in known and any(name in cell.values for cell in cells):
        return _axis(name, cells, {*known, name})
    if name not in known:
        raise ConfigError(
            f"{option} {word}: no axis of these cells{nearest(name, known)}; there are {', '.join(known) or 'none'}"
        )
    return known[name]


# -------------------------------------------------------------------------------- which axes


def _telling_axes(cells: Sequence[Cell]) -> list[str]:
    """Names of values that together tell all cells apart, as few as do: what follows from others is no axis."""
    declared = list(dict.fromkeys(name for cell in cells for name in cell.declared))
    names = dict.fromkeys(name for cell in cells for name in cell.values)
    seen = {name: {cell.values.get(name) for cell in cells} for name in names}
    varying = [name for name, values in seen.items() if len(values) > 1]
    ranked = sorted(varying, key=lambda name: _rank(name, declared))
    chosen: list[str] = []
    groups = 1
    for name in ranked:
        more = len({tuple(cell.values.get(one) for one in (*chosen, name)) for cell in cells})
        if more > groups or name in declared:
            chosen.append(name)
            groups = more
    for name in [name for name in reversed(chosen) if name not in declared]:
        rest = [other for other in chosen if other != name]
        if len({tuple(cell.values.get(one) for one in rest) for cell in cells}) == groups:
            chosen = rest
    return chosen


def _rank(name: str, declared: Sequence[str]) -> tuple[int, int, str]:
    if name in declared:
        return (0, declared.index(name), name)
    return (1, _ORDER.index(name) if name in _ORDER else len(_ORDER), name)


def _numbered(cells: tuple[Cell, ...], names: list[str]) -> tuple[tuple[Cell, ...], list[str]]:
    """Cells that lie at one place get an axis that numbers them, or names their files where nothing else varies."""
    counts: dict[tuple[Value | None, ...], int] = {}
    numbers = []
    for cell in cells:
        key = tuple(cell.values.get(name) for name in names)
        counts[key] = counts.get(key, 0) + 1
        numbers.append(counts[key])
    if max(counts.values()) == 1:
        return cells, names
    stems = [cell.path.name for cell in cells]
    plain = not names and len(set(stems)) == len(cells)
    values: Sequence[Value] = stems if plain else numbers
    marked = tuple(
        replace(cell, values={**cell.values, PICTURE: value})
        for cell, value in zip(cells, values, strict=True)
    )
    return marked, [*names, PICTURE]


# -------------------------------------------------------------------------------- one axis


def _axis(name: str, cells: Sequence[Cell], names: Collection[str]) -> Axis:
    seen = dict.fromkeys(cell.values.get(name) for cell in cells)
    known = [value for value in seen if value is not None]
    kind = _kind(name)
    if all(isinstance(value, int | float) for value in known):
        known.sort(key=float)
    elif kind == "file":
        texts = [str(value) for value in known]
        known.sort(key=lambda value: _epoch_order(str(value), texts))
    elif name == PICTURE:
        known.sort(key=lambda value: _natural(str(value)))
    labels = (
        short_names([str(value) for value in known]) if kind in _PATHS else [_label(one) for one in known]
    )
    if name == "prompt":
        labels = _short_prompts(labels)
    if None not in seen or _serves_all(name, names):
        return Axis(name, tuple(known), tuple(labels))
    bare = [cell for cell in cells if name not in cell.values]
    nothing = BASE if all(is_base(cell.values) for cell in bare) else "none"
    return Axis(name, (None, *known), (nothing, *labels))


def _serves_all(name: str, names: Collection[str]) -> bool:
    """Whether a cell without this value lies at all places of the axis: strengths, where the file is an axis too."""
    kind = _kind(name)
    return kind in NETWORK and kind != "file" and f"file{name[len(kind) :]}" in names


def _kind(name: str) -> str:
    """The name of an axis without the number of the network that it belongs to."""
    return name.split(" ")[0]


def _label(value: Value) -> str:
    return str(value) if not isinstance(value, str) else value or "(empty)"


def _natural(text: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers in texts by size."""
    parts = _NUMBER.split(text)
    return [(1, int(part[:18]), "") if index % 2 else (0, 0, part) for index, part in enumerate(parts)]


def _epoch_order(
    text: str, others: Sequence[str]
) -> tuple[list[tuple[int, int, str]], int, list[tuple[int, int, str]]]:
    """Epochs by number; a file without a number behind those with one and the same name, for it is the last one."""
    stem = without_suffix(text)
    match = _EPOCH.search(stem)
    name = stem[: match.start()] if match else stem
    is_last = not match and any(
        (other := _EPOCH.search(one)) and one[: other.start()] == stem for one in map(without_suffix, others)
    )
    number = int(match[1]) if match else 10**9 if is_last else 0
    return (_natural(name), number, _natural(stem))


def _short_prompts(prompts: list[str]) -> list[str]:
    """Prompts without the tags that all of them share at the start and the end, where something is left of each."""
    if len(prompts) < 2:
        return prompts
    split = [prompt.split(", ") for prompt in prompts]
    start = 0
    while all(len(one) > start + 1 for one in split) and len({one[start] for one in split}) == 1:
        start += 1
    return [("… " if start else "") + ", ".join(one[start:]) for one in split]


# -------------------------------------------------------------------------------- places


def _places(axes: Sequence[Axis], cells: Sequence[Cell]) -> dict[tuple[int, ...], int]:
    """For each place the cell that lies there; a cell of the place itself overrides one that lies at many."""
    numbers = [{value: index for index, value in enumerate(axis.values)} for axis in axes]
    exact: dict[tuple[int, ...], int] = {}
    wide: dict[tuple[int, ...], int] = {}
    for index, cell in enumerate(cells):
        spots = [known.get(cell.values.get(axis.name)) for axis, known in zip(axes, numbers, strict=True)]
        choices = [
            range(len(axis.values)) if spot is None else (spot,)
            for axis, spot in zip(axes, spots, strict=True)
        ]
        places = wide if None in spots else exact
        for place in product(*choices):
            places.setdefault(place, index)
    return {**wide, **exact}
