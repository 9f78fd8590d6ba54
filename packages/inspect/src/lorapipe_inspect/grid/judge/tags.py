"""Figures by a tagger's scores: what the prompt asks for and the picture has, and what nobody asked for.

Records hold the probabilities of the tags that passed ``lora-tag``'s thresholds; others count as 0.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lorapipe_engine.command.records import find_files
from lorapipe_engine.errors import InputError
from lorapipe_inspect.grid.cells import Cell
from lorapipe_inspect.grid.judge.constants import COMMON_TAG, FOUND, TOP_TAGS
from lorapipe_inspect.grid.judge.figures import base_deviations
from lorapipe_inspect.grid.judge.pairs import Key, Pairs, prompt_tags

CATEGORIES = ("general", "character", "copyright", "artist", "meta", "quality")
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Tagged:
    """Probabilities of tags for each cell, None for cells without; all tags that the tagger is known to have."""

    scores: Sequence[Scores | None]
    vocabulary: frozenset[str]


@dataclass(frozen=True)
class Unasked:
    """How much tags of the dataset rose that no prompt asked for: the mean rise of the most risen, 0..1, the same in
    deviations of the base over seeds (None without seeds), and the tags.
    """

    rise: float
    deviations: float | None
    tags: Sequence[tuple[str, float]] = field(default_factory=tuple)


def plain_tag(tag: str) -> str:
    """A tag as prompts have it: spaces in the place of underscores, lower case."""
    return " ".join(tag.replace("_", " ").lower().split())


def scores_of(cell: Cell) -> dict[str, float] | None:
    """The probabilities in a cell's record; None where no tagger has seen it."""
    if not any(isinstance(cell.data.get(name), Mapping) for name in CATEGORIES):
        return None
    return {
        plain_tag(str(tag)): float(score)
        for name in CATEGORIES
        for tag, score in (cell.data.get(name) or {}).items()
        if isinstance(score, int | float)
    }


def tagged(cells: Sequence[Cell], vocabulary: frozenset[str] | None = None) -> Tagged | None:
    """The tagger's scores of all cells; None where no cell has some. Without a vocabulary it is the tags seen."""
    scores = [None if cell.error else scores_of(cell) for cell in cells]
    if all(one is None for one in scores):
        return None
    return Tagged(scores, vocabulary or frozenset(tag for one in scores for tag in one or ()))


def read_vocabulary(path: Path) -> frozenset[str]:
    """The tags of a tagger's ``selected_tags.csv``. Raises InputError."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row["name"] for row in csv.DictReader(file)]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: no list of tags with a column 'name'") from error
    return frozenset(map(plain_tag, rows))


def dataset_tags(folder: Path) -> frozenset[str]:
    """Tags that at least a tenth of a folder's captions (.txt) have. Raises InputError where there are none."""
    paths = find_files(folder, {".txt"}, recursive=True)
    if not paths:
        raise InputError(f"{folder}: has no captions (.txt) in it")
    counts: Counter[str] = Counter()
    for path in paths:
        try:
            counts.update(set(prompt_tags(path.read_text(encoding="utf-8", errors="replace"))))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return frozenset(tag for tag, count in counts.items() if count >= COMMON_TAG * len(paths))


def recall(cell: Cell, scores: Scores, vocabulary: frozenset[str]) -> float | None:
    """Share of the prompt's tags, of those that the tagger has, that it finds; None without such tags."""
    wanted = [tag for tag in prompt_tags(str(cell.values.get("prompt", ""))) if tag in vocabulary]
    if not wanted:
        return None
    return sum(scores.get(tag, 0.0) >= FOUND for tag in wanted) / len(wanted)


def recall_rises(cells: Sequence[Cell], pairs: Pairs, by: Tagged) -> list[float | None]:
    """For each cell its recall less its base's, -1..1."""
    values = [
        None if scores is None else recall(cell, scores, by.vocabulary)
        for cell, scores in zip(cells, by.scores, strict=True)
    ]
    return [_rise(values, index, base) for index, base in enumerate(pairs.bases)]


def _rise(values: Sequence[float | None], index: int, base: int | None) -> float | None:
    own, other = values[index], None if base is None else values[base]
    return None if own is None or other is None or base == index else own - other


def unasked(cells: Sequence[Cell], pairs: Pairs, by: Tagged, wanted: frozenset[str]) -> dict[Key, Unasked]:
    """For each network the tags of the dataset that rise most over the base where the prompt has them not."""
    asked = [set(prompt_tags(str(cell.values.get("prompt", "")))) for cell in cells]
    by_network: dict[Key, Unasked] = {}
    for network, members in pairs.networks.items():
        rises = {tag: _mean_rise(tag, members, asked, pairs, by) for tag in wanted & by.vocabulary}
        known = {tag: rise for tag, rise in rises.items() if rise is not None}
        top = sorted(known.items(), key=lambda row: (-row[1], row[0]))[:TOP_TAGS]
        if not top:
            continue
        levels = [_level(scores, [tag for tag, _ in top]) for scores in by.scores]
        deviation = base_deviations(pairs, {"unasked": levels}).get("unasked")
        rise = float(np.mean([rise for _, rise in top]))
        by_network[network] = Unasked(rise, None if deviation is None else rise / deviation, tuple(top))
    return by_network


def _mean_rise(
    tag: str, members: Sequence[int], asked: Sequence[set[str]], pairs: Pairs, by: Tagged
) -> float | None:
    rises = []
    for index in members:
        base = pairs.bases[index]
        own, other = by.scores[index], None if base is None else by.scores[base]
        if own is not None and other is not None and tag not in asked[index]:
            rises.append(own.get(tag, 0.0) - other.get(tag, 0.0))
    return float(np.mean(rises)) if rises else None


def _level(scores: Scores | None, tags: Sequence[str]) -> float | None:
    return None if scores is None else float(np.mean([scores.get(tag, 0.0) for tag in tags]))
