"""The metadata of added networks: what all of them agree on, what is true of the sum, and the recipe."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lorapipe_engine.models.predictions import EPSILON, FLOW, Prediction, V
from lorapipe_engine.networks.metadata import ModelSpec, base_version, table_of
from lorapipe_merge.matching import Applied
from lorapipe_merge.networks.report import LayerReport
from lorapipe_merge.recipe import RECIPE_KEY

VARIOUS = "Dynamic"  # sd-scripts' word where ranks differ
# True of one training run, or written anew.
_OWN = frozenset(
    "ss_" + name
    for name in (
        *("session_id", "training_started_at", "training_finished_at", "output_name", "training_comment"),
        *("network_module", "network_dim", "network_alpha", "network_args", "network_dropout"),
        "tag_frequency",
    )
)


def summed_metadata(
    networks: Sequence[Applied],
    layers: Sequence[LayerReport],
    *,
    family: str | None,
    recipe: str,
    comment: str,
    title: str,
    date: datetime,
    rank: int | None = None,
    alpha: float,
) -> dict[str, str]:
    """Metadata of the sum: ``ss_`` entries that all inputs share, tags counted together, ranks, ``modelspec.*`` where
    the family is known, and ``recipe``. Hashes come later. ``rank``: the one asked for, if it was one number.
    ``alpha``: that of all modules.
    """
    olds = [network.network.metadata for network in networks]
    new = {
        key: value
        for key, value in olds[0].items()
        if key.startswith("ss_") and key not in _OWN and all(old.get(key) == value for old in olds)
    }
    prediction = next(
        (row.name for row in (V, FLOW) if any(_predicts(old, row) for old in olds)), EPSILON.name
    )
    if family is not None:
        new.setdefault("ss_base_model_version", base_version(family, prediction))
        new.setdefault("ss_v2", str(family == "sd2"))
        spec = ModelSpec(
            family=family,
            adapter=True,
            title=title,
            date=date,
            prediction=prediction,
            resolution=_resolution(olds),
            encoder_layer=_encoder_layer(olds),
            merged_from=", ".join(Path(network.name).name for network in networks),
        )
        new |= spec.metadata()
        new["ss_output_name"] = title
    if tags := _tags(olds):
        new["ss_tag_frequency"] = json.dumps(tags, ensure_ascii=False)
    new |= _network_entries(layers, rank, alpha)
    new["ss_training_comment"] = comment
    new[RECIPE_KEY] = recipe
    return new


def _resolution(olds: Sequence[Mapping[str, str]]) -> tuple[int, int] | None:
    """Width and height that all inputs were trained at; None where they do not say, or differ."""
    said = {old.get("modelspec.resolution") or _spelt_resolution(old) for old in olds}
    text = said.pop() if len(said) == 1 else None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text or "")
    return (int(match[1]), int(match[2])) if match else None


def _spelt_resolution(old: Mapping[str, str]) -> str:
    """sd-scripts writes "(512, 512)"."""
    numbers = re.findall(r"\d+", old.get("ss_resolution", ""))
    return "x".join(numbers * 2 if len(numbers) == 1 else numbers)


def _encoder_layer(olds: Sequence[Mapping[str, str]]) -> int | None:
    """The clip skip that all inputs were trained with."""
    said = {old.get("modelspec.encoder_layer") or old.get("ss_clip_skip", "") for old in olds}
    text = said.pop() if len(said) == 1 else ""
    return int(text) if re.fullmatch(r"\d{1,2}", text) else None


def _predicts(old: Mapping[str, str], row: Prediction) -> bool:
    of_v = row is V and old.get("ss_base_model_version", "").endswith("_v")
    return old.get("modelspec.prediction_type") == row.word or of_v


def _tags(olds: Sequence[Mapping[str, str]]) -> dict[str, dict[str, int]]:
    """How often each tag was trained, by folder, over all networks."""
    by_folder: dict[str, Counter[str]] = {}
    for old in olds:
        for folder, tags in table_of(old, "ss_tag_frequency").items():
            if isinstance(tags, dict):
                counts = {tag: count for tag, count in tags.items() if isinstance(count, int)}
                by_folder.setdefault(folder, Counter()).update(counts)
    return {folder: dict(counts) for folder, counts in by_folder.items()}


def _network_entries(layers: Sequence[LayerReport], rank: int | None, alpha: float) -> dict[str, str]:
    ranked = [layer for layer in layers if layer.rank is not None]
    plain = len(ranked) == len(layers)
    conv = [layer for layer in ranked if max(layer.kernel, default=1) > 1]
    rest = [layer for layer in ranked if layer not in conv]
    dim = _dim(rest or conv, rank)
    arguments: dict[str, Any] = {} if plain else {"algo": "locon" if ranked else "full"}
    if conv:
        arguments |= {"conv_dim": _dim(conv, None), "conv_alpha": f"{alpha:g}"}
    entries = {
        "ss_network_module": "networks.lora" if plain else "lycoris.kohya",
        "ss_network_dim": dim,
        "ss_network_alpha": f"{alpha:g}" if ranked else dim,
    }
    return entries | ({"ss_network_args": json.dumps(arguments)} if arguments else {})


def _dim(layers: Sequence[LayerReport], rank: int | None) -> str:
    """The rank that the layers have. The one asked for, which small layers do not reach,
    stands for all if any layer has it.
    """
    ranks = {layer.rank for layer in layers}
    if rank in ranks:
        return str(rank)
    return str(ranks.pop()) if len(ranks) == 1 else VARIOUS
