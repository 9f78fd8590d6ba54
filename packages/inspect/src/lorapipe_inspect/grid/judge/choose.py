"""The choice: gates, the highest concept figure, a bootstrap interval, the runner-up, or "cannot tell".

There is no blended score: networks that pass every gate are compared by one figure, and those that the pictures cannot
tell apart are ties, of which the earliest is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lorapipe_inspect.grid.judge import constants
from lorapipe_inspect.grid.judge.constants import JUST_SEEN
from lorapipe_inspect.grid.judge.figures import Figures
from lorapipe_inspect.grid.judge.pairs import Key, Pairs

SELECTIVITY = "selectivity"


@dataclass(frozen=True)
class Choice:
    """What was chosen. ``network`` is None where the cells cannot tell, for the ``reason``.

    ``interval``: of the highest figure, by bootstrap. ``ties``: networks that cannot be told from the highest, the
    chosen one first. ``failed``: the gates that a network did not pass. ``untested``: gates that had no cells. ``few``:
    networks that take no part, for others have enough pictures and they have few.
    """

    figure: str
    network: Key | None
    reason: str = ""
    values: Mapping[Key, float] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    ties: Sequence[Key] = ()
    runner_up: Key | None = None
    failed: Mapping[Key, Sequence[str]] = field(default_factory=dict)
    untested: Sequence[str] = ()
    pictures: int = 0
    few: Sequence[Key] = ()


def gates_failed(one: Figures, unasked: float | None) -> list[str]:
    """The gates that a network does not pass, each with its number."""
    failed = []
    if one.spread is not None and one.spread < constants.LEAST_SPREAD:
        failed.append(f"spread {one.spread:.2f} of the base's, below {constants.LEAST_SPREAD:g}")
    for name, deviations in one.burn.items():
        # Fewer black and white pixels than the base has are no burning.
        if (deviations if name in constants.RISES else abs(deviations)) > constants.MOST_MADS:
            failed.append(
                f"{name} {deviations:+.1f} deviations from the base, beyond {constants.MOST_MADS:g}"
            )
    if unasked is not None and unasked > constants.MOST_MADS:
        failed.append(f"unasked tags {unasked:+.1f} deviations over the base, beyond {constants.MOST_MADS:g}")
    return failed


def untested_gates(figures: Mapping[Key, Figures], unasked: Mapping[Key, float | None]) -> list[str]:
    """Gates that no cell allowed to test."""
    untested = []
    if all(one.spread is None for one in figures.values()):
        untested.append("spread (needs two seeds of a prompt)")
    if not any(one.burn for one in figures.values()):
        untested.append("burn (needs two seeds of a prompt from the base)")
    if all(value is None for value in unasked.values()):
        untested.append("unasked tags (needs lora-tag's records and --dataset)")
    return untested


def choose(
    pairs: Pairs,
    figure: str,
    rows: Sequence[float | None],
    failed: Mapping[Key, Sequence[str]],
    order: Mapping[Key, tuple[float, float]],
    untested: Sequence[str] = (),
) -> Choice:
    """Choose among the networks of ``pairs`` by a figure of each cell (None where a cell has none).

    For ``selectivity`` the rows are moves, and cells without the trigger are the other half of the ratio; for any other
    figure they are what is averaged. ``order``: for each network its place (epochs from the earliest) and weight.
    Networks are compared on the prompts and seeds that all of them have; those with few pictures leave it to
    the others, where there are some.
    """
    few = _with_few(pairs, rows, figure)
    compared = {network: cells for network, cells in pairs.networks.items() if network not in few}
    shared = _shared_keys(pairs, rows, compared.values())
    samples = {network: _samples(pairs, rows, cells, shared, figure) for network, cells in compared.items()}
    values = {network: _value(one) for network, one in samples.items()}
    counts = [len(moved) for moved, _ in samples.values()]
    pictures = min(counts, default=0)
    told = {"values": values, "failed": failed, "untested": untested, "pictures": pictures, "few": few}
    if pictures < constants.FEWEST_PICTURES:
        reason = (
            f"{pictures} pictures of the concept for each network, fewer than {constants.FEWEST_PICTURES}"
        )
        return Choice(figure, None, reason, **told)  # type: ignore[arg-type]
    passing = [network for network in values if not failed.get(network)]
    if not passing:
        return Choice(figure, None, "no network passes every gate", **told)  # type: ignore[arg-type]
    best = max(passing, key=lambda network: values[network])
    low, high = _interval(samples[best])
    tied = [network for network in passing if values[network] >= low]
    ties = sorted(tied, key=lambda network: (order[network][0], abs(order[network][1] - 1), -values[network]))
    rest = sorted((one for one in passing if one != ties[0]), key=lambda network: -values[network])
    told |= {"interval": (low, high), "ties": ties, "runner_up": rest[0] if rest else None}
    if figure != SELECTIVITY and low <= 0:
        reason = f"no network has surely more {figure} than the base, which may be the figure's fault (--by)"
        return Choice(figure, None, reason, **told)  # type: ignore[arg-type]
    if len(passing) > 1 and len(tied) == len(passing):
        reason = f"all {len(passing)} that pass the gates lie within the interval of the highest"
        return Choice(figure, None, reason, **told)  # type: ignore[arg-type]
    return Choice(figure, ties[0], **told)  # type: ignore[arg-type]


Sample = tuple[NDArray[np.float64], NDArray[np.float64] | None]


def _with_few(pairs: Pairs, rows: Sequence[float | None], figure: str) -> list[Key]:
    """Networks with fewer pictures of the concept than it takes, and with less than half of what others have: those of
    another sheet of the grid. A network that lacks a picture or two stays."""
    counts = {
        network: len(_samples(pairs, rows, cells, set(pairs.keys), figure)[0])
        for network, cells in pairs.networks.items()
    }
    most = max(counts.values(), default=0)
    least = min(constants.FEWEST_PICTURES, most / 2)
    return (
        [network for network, count in counts.items() if count < least]
        if most >= constants.FEWEST_PICTURES
        else []
    )


def _shared_keys(pairs: Pairs, rows: Sequence[float | None], networks: Collection[Sequence[int]]) -> set[Key]:
    """Prompts and seeds for which every one of ``networks``, given by their cells, has a figure."""
    sets = [{pairs.keys[i] for i in cells if rows[i] is not None} for cells in networks]
    return set.intersection(*sets) if sets else set()


def _samples(
    pairs: Pairs, rows: Sequence[float | None], cells: Sequence[int], shared: set[Key], figure: str
) -> Sample:
    """Figures of the cells with the trigger, and for selectivity of those without; of all where nothing says which."""
    known = [(pairs.keys[i], pairs.parts[i], value) for i in cells if (value := rows[i]) is not None]
    known = [row for row in known if row[0] in shared]
    has_parts = any(part for _, part, _ in known)
    concept = np.array([value for _, part, value in known if part == "T" or not has_parts], dtype=np.float64)
    if figure != SELECTIVITY:
        return concept, None
    return concept, np.array([value for _, part, value in known if part in ("U", "O")], dtype=np.float64)


def _value(sample: Sample) -> float:
    concept, others = sample
    if not concept.size:
        return 0.0
    if others is None:
        return float(concept.mean())
    return float(concept.mean() / max(float(others.mean()) if others.size else 0.0, JUST_SEEN))


def _interval(sample: Sample) -> tuple[float, float]:
    """The middle 90 % of the figure over resampled prompts and seeds (percentile bootstrap)."""
    random = np.random.default_rng(constants.SEED)
    concept, others = sample
    drawn = random.integers(len(concept), size=(constants.RESAMPLES, len(concept)))
    values = concept[drawn].mean(axis=1)
    if others is not None and others.size:
        drawn = random.integers(len(others), size=(constants.RESAMPLES, len(others)))
        values = values / np.maximum(others[drawn].mean(axis=1), JUST_SEEN)
    edge = (1 - constants.INTERVAL) / 2
    low, high = np.quantile(values, (edge, 1 - edge))
    return float(low), float(high)
