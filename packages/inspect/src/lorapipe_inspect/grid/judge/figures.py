"""Figures of cells and of networks, always as differences from the base cell of the same prompt, seed and sampler.

What they tell, and their limits, stand in docs/grid.md. Ranges are in the docstrings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

import numpy as np

from lorapipe_inspect.grid.judge.constants import FEWEST_KNEE_WEIGHTS, JUST_SEEN, LEAST_BEND, LEAST_MAD
from lorapipe_inspect.grid.judge.pairs import Key, Pairs
from lorapipe_inspect.grid.layout import Grid
from lorapipe_inspect.grid.looks import Look, distance

BURN = ("chroma", "clipped", "edges")


@dataclass(frozen=True)
class Figures:
    """Figures of one network at one strength; None where the cells do not allow it.

    ``move``: mean CIE76 to the base over prompts with the trigger, 0..~60. ``leak_u``, ``leak_o``: the same without
    the trigger and on other prompts. ``selectivity``: ``move`` over the mean of both. ``spread``: mean distance of
    seeds over the base's. ``step``: mean distance to the network before it. ``burn``: chroma, clipped and edges, as
    medians of differences, in units of the base's deviation over seeds.
    """

    pictures: int
    move: float | None = None
    leak_u: float | None = None
    leak_o: float | None = None
    selectivity: float | None = None
    spread: float | None = None
    step: float | None = None
    burn: Mapping[str, float] = field(default_factory=dict)


def cell_figures(pairs: Pairs, looks: Sequence[Look | None]) -> list[dict[str, float]]:
    """The figures of each cell that need no model: ``move``, and the rises of chroma, clipped and edges."""
    rows: list[dict[str, float]] = []
    for index, base in enumerate(pairs.bases):
        look, other = looks[index], None if base is None else looks[base]
        row: dict[str, float] = {}
        if look is not None and other is not None and base != index:
            row["move"] = distance(other, look)
            row |= {name: getattr(look, name) - getattr(other, name) for name in BURN}
        rows.append(row)
    return rows


def network_figures(
    grid: Grid, pairs: Pairs, looks: Sequence[Look | None], rows: Sequence[Mapping[str, float]]
) -> dict[Key, Figures]:
    """The figures of every network and strength."""
    deviations = base_deviations(pairs, {name: _levels(looks, name) for name in BURN})
    before = _before(grid, pairs)
    by_network: dict[Key, Figures] = {}
    for network, cells in pairs.networks.items():
        moves = {
            part: _mean([rows[i]["move"] for i in cells if "move" in rows[i] and pairs.parts[i] == part])
            for part in "TUO"
        }
        known = any(pairs.parts[i] for i in cells)
        everything = _mean([rows[i]["move"] for i in cells if "move" in rows[i]])
        by_network[network] = Figures(
            pictures=len(cells),
            move=moves["T"] if known else everything,
            leak_u=moves["U"],
            leak_o=moves["O"],
            selectivity=selectivity(
                [rows[i]["move"] for i in cells if "move" in rows[i] and pairs.parts[i] == "T"],
                [rows[i]["move"] for i in cells if "move" in rows[i] and pairs.parts[i] in ("U", "O")],
            ),
            spread=_spread(pairs, looks, cells),
            step=_step(pairs, looks, cells, before.get(network)),
            burn={
                name: float(np.median([rows[i][name] for i in cells if name in rows[i]])) / deviations[name]
                for name in BURN
                if name in deviations and any(name in rows[i] for i in cells)
            },
        )
    return by_network


def selectivity(moved: Sequence[float], others: Sequence[float]) -> float | None:
    """Mean move with the trigger over the mean move without it; None where either is missing."""
    if not moved or not others:
        return None
    return float(np.mean(moved) / max(float(np.mean(others)), JUST_SEEN))


def base_deviations(pairs: Pairs, levels: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Median absolute deviation of the base over seeds, for each kind of level; none where no prompt has two seeds."""
    groups: dict[Key, list[int]] = {}
    for index in pairs.of_base():
        groups.setdefault(pairs.groups[index], []).append(index)
    several = [cells for cells in groups.values() if len(cells) > 1]
    deviations: dict[str, float] = {}
    for name, values in levels.items():
        apart: list[float] = []
        for cells in several:
            known = [value for i in cells if (value := values[i]) is not None]
            apart += [abs(value - float(np.median(known))) for value in known]
        if apart:
            deviations[name] = max(float(np.median(apart)), LEAST_MAD[name])
    return deviations


def _levels(looks: Sequence[Look | None], name: str) -> list[float | None]:
    return [None if look is None else float(getattr(look, name)) for look in looks]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _spread(pairs: Pairs, looks: Sequence[Look | None], cells: Sequence[int]) -> float | None:
    """Mean distance between seeds of one prompt over the same of the base, 0 for one picture whatever the seed."""
    groups: dict[Key, list[int]] = {}
    for index in cells:
        if looks[index] is not None and pairs.bases[index] is not None:
            groups.setdefault(pairs.groups[index], []).append(index)
    ours, theirs = 0.0, 0.0
    for members in groups.values():
        for one, other in combinations(members, 2):
            ours += _between(looks, one, other)
            theirs += _between(looks, pairs.bases[one], pairs.bases[other])
    return ours / theirs if theirs > 0 else None


def _between(looks: Sequence[Look | None], one: int | None, other: int | None) -> float:
    first = None if one is None else looks[one]
    second = None if other is None else looks[other]
    return 0.0 if first is None or second is None or first is second else distance(first, second)


def _step(
    pairs: Pairs, looks: Sequence[Look | None], cells: Sequence[int], before: Sequence[int] | None
) -> float | None:
    if before is None:
        return None
    by_key = {pairs.keys[index]: index for index in before}
    both = [(by_key[pairs.keys[index]], index) for index in cells if pairs.keys[index] in by_key]
    return _mean([_between(looks, one, other) for one, other in both if looks[one] and looks[other]])


def _before(grid: Grid, pairs: Pairs) -> dict[Key, Sequence[int]]:
    """For each network the one before it on the axis of files, at the same strength."""
    if "file" not in pairs.names:
        return {}
    at = pairs.names.index("file")
    axis = grid.axis("file")
    order = [value for value in axis.values if value is not None] if axis else []
    before: dict[Key, Sequence[int]] = {}
    for network in pairs.networks:
        value = network[at]
        if value is not None and value in order and (place := order.index(value)) > 0:
            earlier = (*network[:at], order[place - 1], *network[at + 1 :])
            if earlier in pairs.networks:
                before[network] = pairs.networks[earlier]
    return before


def headroom(pairs: Pairs, figures: Mapping[Key, Figures]) -> dict[Key, float]:
    """For each file the weight where its move bends most, less 1: how far the strength can go. By the network's values
    without its weight.

    The bend is the largest second difference of the move over the weight, for spacings that may differ. Files whose
    curve is nearly straight are left out.
    """
    if "weight" not in pairs.names:
        return {}
    at = pairs.names.index("weight")
    curves: dict[Key, list[tuple[float, float]]] = {}
    for network, one in figures.items():
        weight = network[at]
        if one.move is not None and isinstance(weight, int | float):
            curves.setdefault((*network[:at], *network[at + 1 :]), []).append((float(weight), one.move))
    rooms: dict[Key, float] = {}
    for file, points in curves.items():
        curve = sorted({0.0: 0.0, **dict(points)}.items())
        if len(curve) < FEWEST_KNEE_WEIGHTS:
            continue
        slopes = [(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in pairwise(curve)]
        bends = [
            (2 * (after - before) / (x2 - x0), after - before, x1)
            for (x0, _), (x1, _), (x2, _), (before, after) in zip(
                curve, curve[1:], curve[2:], pairwise(slopes), strict=False
            )
        ]
        _, change, knee = max(bends, key=lambda bend: abs(bend[0]))
        if abs(change) >= LEAST_BEND * float(np.mean(np.abs(slopes))):
            rooms[file] = knee - 1
    return rooms
