"""Figures by models that the user has, for each cell: likeness to held-out pictures, copying, tags in full."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lorapipe_engine.errors import InputError
from lorapipe_engine.models.bases import demo_asset
from lorapipe_inspect.grid.cells import Cell
from lorapipe_inspect.grid.judge import encoders, texts
from lorapipe_inspect.grid.judge.constants import CCIP_SAME, FEWEST_VENDI, LEAST_ROOM
from lorapipe_inspect.grid.judge.encoders import Encoder, Floats
from lorapipe_inspect.grid.judge.pairs import Key, Pairs
from lorapipe_inspect.grid.judge.tags import CATEGORIES, Scores, Tagged, plain_tag

DEMO = "demo"
# Numbers of categories in selected_tags.csv, as boorus have them.
_CATEGORY = {"0": "general", "1": "artist", "3": "copyright", "4": "character", "5": "meta"}


@dataclass(frozen=True)
class ByModel:
    """Figures of a model. ``rises``: for each cell what it has over its base, higher is nearer to the concept.

    ``notes``: lines for the report. ``vendi``: for each network how many different pictures it makes, 1..n. ``ways``:
    for each network how much of the way it goes from the base's value to that of held-out pictures among themselves.
    """

    name: str
    values: Sequence[float | None]
    rises: Sequence[float | None]
    notes: Sequence[str] = ()
    vendi: Mapping[Key, float] = field(default_factory=dict)
    ways: Mapping[Key, float] = field(default_factory=dict)


def likeness(
    name: str, path: Path, held_out: Path, dataset: Path | None, cells: Sequence[Cell], pairs: Pairs
) -> list[ByModel]:
    """DINO-I, CLIP-I or another encoder's: the mean cosine of each cell to held-out pictures. And CLIP-T,
    the cosine to its own prompt, of a CLIP with both halves and a tokenizer. Raises InputError, MissingExtra.
    """
    encoder = Encoder(_file_of(path), encoders.RECIPES[name])
    kept = encoders.encode_files(encoder, encoders.folder_pictures(held_out))
    rows = encoders.cell_vectors(encoder, cells)
    values = encoders.mean_cosine(rows, kept)
    notes = []
    if dataset is not None:
        trained = encoders.encode_files(encoder, encoders.folder_pictures(dataset))
        nearest = encoders.nearest_cosine(rows, trained)
        usual = float(np.median([one for one in encoders.nearest_cosine(kept, trained) if one is not None]))
        over = [
            cell.path.name
            for cell, one in zip(cells, nearest, strict=True)
            if one is not None and one > usual
        ]
        notes.append(
            f"{name}: {len(over)} of {len(cells)} cells are nearer to a training picture than held-out ones are "
            f"(median cosine {usual:.2f})" + (f", such as {over[0]}" if over else "")
        )
    risen = rises(values, pairs)
    own = ways(values, risen, pairs, encoders.own_cosine(kept))
    figures = [ByModel(name, values, risen, notes, _vendi(rows, pairs), own)]
    if name == "clip" and encoder.reads_words:
        if texts.tokenizer_of(path) is None:
            notes.append(
                f"clip: no {texts.TOKENIZER} beside {path.name}, so pictures are not compared with prompts"
            )
        else:
            to_prompts = texts.likeness_to_prompts(encoder, cells, rows)
            figures.append(ByModel(texts.NAME, to_prompts, rises(to_prompts, pairs)))
    return figures


def _file_of(path: Path) -> Path:
    """The file, or the demo's encoder."""
    return path if str(path) != DEMO or path.exists() else demo_asset("encoder.onnx", "encoder")


def _vendi(rows: Sequence[Floats | None], pairs: Pairs) -> dict[Key, float]:
    scores: dict[Key, float] = {}
    for network, cells in pairs.networks.items():
        known = [row for index in cells if (row := rows[index]) is not None]
        if len(known) >= FEWEST_VENDI:
            scores[network] = encoders.vendi(np.stack(known))
    return scores


def character(folder: Path, held_out: Path, cells: Sequence[Cell], pairs: Pairs) -> ByModel:
    """CCIP: how far each cell is from held-out pictures of a character, as 1 less its difference. Raises InputError."""
    encoder = Encoder(folder / encoders.CCIP_FEATURES, encoders.CCIP)
    kept = encoders.encode_files(encoder, encoders.folder_pictures(held_out))
    rows = encoders.cell_vectors(encoder, cells)
    apart = encoders.ccip_differences(folder / encoders.CCIP_METRIC, rows, kept)
    values = [None if one is None else 1 - one for one in apart]
    notes = []
    same = CCIP_SAME.get(folder.name)
    if same is not None:
        count = sum(one is not None and one <= same for one in apart)
        notes.append(
            f"ccip: {count} of {len(cells)} cells show one character with the held-out pictures (<= {same:g})"
        )
    return ByModel("ccip", values, rises(values, pairs), notes)


def rises(values: Sequence[float | None], pairs: Pairs) -> list[float | None]:
    """For each cell its value less its base's; None for the base itself."""
    differences: list[float | None] = []
    for index, base in enumerate(pairs.bases):
        own, other = values[index], None if base is None else values[base]
        differences.append(None if own is None or other is None or base == index else own - other)
    return differences


def ways(
    values: Sequence[float | None], risen: Sequence[float | None], pairs: Pairs, own: float | None
) -> dict[Key, float]:
    """For each network the mean rise of its cells over the rise that would make them as like the held-out pictures as
    these are each other, by cells with the trigger where some have it.

    ``own``: the likeness of held-out pictures to each other. Networks whose base is nearly as like them are left out.
    """
    shares: dict[Key, float] = {}
    for network in pairs.networks:
        rows = [
            (rise, before)
            for i in pairs.of_concept(network)
            if (rise := risen[i]) is not None
            and (base := pairs.bases[i]) is not None
            and (before := values[base]) is not None
        ]
        if own is None or not rows:
            continue
        rise, before = (float(np.mean(column)) for column in zip(*rows, strict=True))
        if own - before >= LEAST_ROOM:
            shares[network] = rise / (own - before)
    return shares


# -------------------------------------------------------------------------------- a tagger in full


def tag_in_full(
    folder: Path, cells: Sequence[Cell]
) -> tuple[Tagged, list[Floats | None], Encoder, list[bool]]:
    """All probabilities of a WD tagger in a folder with ``model.onnx`` and ``selected_tags.csv`` for each cell.

    Returns them as scores and as vectors, the network, and which tags are general ones. Raises InputError.
    """
    tags, categories = _labels(folder / encoders.TAGS)
    encoder = Encoder(folder / encoders.TAGGER, encoders.WD)
    rows = encoders.cell_vectors(encoder, cells)
    width = next((len(row) for row in rows if row is not None), len(tags))
    if width != len(tags):
        raise InputError(f"{folder}: {encoders.TAGS} has {len(tags)} tags, {encoders.TAGGER} gives {width}")
    scores: list[Scores | None] = [
        None
        if row is None
        else {tag: float(p) for tag, p, kind in zip(tags, row, categories, strict=True) if kind in CATEGORIES}
        for row in rows
    ]
    known = frozenset(tag for tag, kind in zip(tags, categories, strict=True) if kind in CATEGORIES)
    return Tagged(scores, known), rows, encoder, [kind == "general" for kind in categories]


def _labels(path: Path) -> tuple[list[str], list[str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return [plain_tag(row["name"]) for row in rows], [_CATEGORY.get(row["category"], "") for row in rows]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: no list of tags with columns 'name' and 'category'") from error


def tag_cosine(
    encoder: Encoder, general: Sequence[bool], dataset: Path, rows: Sequence[Floats | None], pairs: Pairs
) -> ByModel:
    """The cosine of each cell's general tags, all probabilities, to the dataset's mean."""
    which = np.array(general)
    known = encoders.encode_files(encoder, encoders.folder_pictures(dataset))[:, which].mean(axis=0)
    values = [
        None if row is None else float(encoders.unit(row[which]) @ encoders.unit(known)) for row in rows
    ]
    return ByModel("tags", values, rises(values, pairs))
