"""What is compared with what: for each cell its base, for each network its cells, for each prompt what it asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lorapipe_inspect.grid.cells import NETWORK, Cell, Value, is_base
from lorapipe_inspect.grid.layout import PICTURE, Grid

Part = Literal["T", "U", "O"]
Key = tuple[Value | None, ...]

# As lora-sample's probes call the kinds of their prompts.
_PARTS: Mapping[str, Part] = {"trigger": "T", "same": "U", "other": "O"}
_STRENGTH = re.compile(r":[+-]?[.\d]+$")


@dataclass(frozen=True)
class Pairs:
    """The cells of a grid beside their base. Numbers are places in the grid's cells.

    ``bases``: the base cell of each cell, None without one; of a base cell, itself. ``keys``: prompt, seed and whatever
    else a cell shares with its base. ``groups``: what a cell shares with other seeds. ``parts``: T with the trigger,
    U the same without it, O others; None where nothing says. ``networks``: for each network and strength its cells.
    """

    bases: Sequence[int | None]
    keys: Sequence[Key]
    groups: Sequence[Key]
    parts: Sequence[Part | None]
    networks: Mapping[Key, Sequence[int]]
    names: tuple[str, ...]

    def of_base(self) -> list[int]:
        """The base's own cells."""
        return [index for index, base in enumerate(self.bases) if base == index]

    def of_concept(self, network: Key) -> list[int]:
        """A network's cells with the trigger; all of them where none is known to have it."""
        cells = self.networks[network]
        return [index for index in cells if self.parts[index] == "T"] or list(cells)


def pair_cells(grid: Grid, trigger: str | None = None) -> Pairs:
    """Find the base of every cell: the cell without a network of the same prompt, seed, sampler and so on."""
    cells = grid.cells
    plain = [index for index, cell in enumerate(cells) if is_base(cell.values)]
    names = sorted(
        {name for index in plain for name in cells[index].values if not _of_network(name) and name != PICTURE}
    )
    keys = [tuple(cell.values.get(name) for name in names) for cell in cells]
    first: dict[Key, int] = {}
    for index in plain:
        if not cells[index].error:
            first.setdefault(keys[index], index)
    # A second picture of the same base is a cell beside it, not a base.
    bases = [first.get(key) for key in keys]
    groups = [tuple(value for name, value in zip(names, key, strict=True) if name != "seed") for key in keys]
    own = tuple(axis.name for axis in grid.axes if axis.name not in names and axis.name != PICTURE)
    networks: dict[Key, list[int]] = {}
    for index, cell in enumerate(cells):
        if not is_base(cell.values) and not cell.error:
            networks.setdefault(tuple(cell.values.get(name) for name in own), []).append(index)
    return Pairs(bases, keys, groups, _parts(cells, trigger), networks, own)


def _of_network(name: str) -> bool:
    return name.split(" ")[0] in NETWORK


# -------------------------------------------------------------------------------- prompts


def prompt_tags(prompt: str) -> list[str]:
    """The tags of a prompt: without brackets and strengths, ``_`` as a space, in lower case."""
    tags = []
    for piece in re.split(r"[,\n]|\bBREAK\b", prompt):
        text = piece.replace("\\(", "\0").replace("\\)", "\1").strip()
        text = _STRENGTH.sub("", text.strip("()[] ")).strip("()[] ")
        text = text.replace("\0", "(").replace("\1", ")")
        if text:
            tags.append(" ".join(text.replace("_", " ").lower().split()))
    return tags


def _parts(cells: Sequence[Cell], trigger: str | None) -> list[Part | None]:
    told = [_PARTS.get(str(cell.data.get("kind", ""))) for cell in cells]
    if trigger is None:
        return told
    word = " ".join(trigger.replace("_", " ").lower().split())
    tags = [prompt_tags(str(cell.values.get("prompt", ""))) for cell in cells]
    has = [any(_has(tag, word) for tag in one) for one in tags]
    rest = [tuple(left for tag in one if (left := _without(tag, word))) for one in tags]
    with_trigger = {one for one, there in zip(rest, has, strict=True) if there}
    return [
        said or ("T" if there else "U" if one in with_trigger else "O")
        for said, there, one in zip(told, has, rest, strict=True)
    ]


def _has(tag: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", tag) is not None


def _without(tag: str, word: str) -> str:
    return " ".join(re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", " ", tag).split())
