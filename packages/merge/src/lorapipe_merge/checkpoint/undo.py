"""A merge taken back: the recipe in a merged fp32 checkpoint says what was added; it is subtracted again.

float32 holds W + ΔW to about one part in ten million, so that a base in fp16 or bf16 comes back bit for bit, but for
values that are tiny beside their change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorapipe_engine.checkpoints.opened import Base, open_base
from lorapipe_engine.command.documents import parse_json
from lorapipe_engine.delta import needs_base
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_merge.blocks import parse_blocks
from lorapipe_merge.checkpoint.merge import Inputs, Wishes, write_merge
from lorapipe_merge.checkpoint.report import Report
from lorapipe_merge.inputs import open_networks
from lorapipe_merge.matching import Applied
from lorapipe_merge.recipe import RECIPE_KEY

_WORDS: Mapping[str, str] = {"F16": "fp16", "BF16": "bf16", "F32": "fp32"}


def undo_merge(merged: str, names: Sequence[str], output: Path, wishes: Wishes) -> Report:
    """Take the networks of ``merged`` out of it. ``names`` say where they are now, if not where they were.

    The result has the base's own number type unless another is wished for. Raises InputError where the file has no
    recipe, is not fp32, or holds networks whose change cannot be subtracted.
    """
    with open_base(merged) as base:
        recipe = _recipe(base)
        sources = recipe.get("networks", [])
        paths = _find(sources, names, base.path.parent)
        with open_networks(
            [(str(path), -float(s["ratio"])) for path, s in zip(paths, sources, strict=True)]
        ) as nets:
            _check(nets, sources)
            weights = parse_blocks(recipe["blocks"], base.family) if recipe.get("blocks") else None
            precision = wishes.precision
            if precision == "keep":
                precision = _WORDS.get(recipe.get("base_dtype", ""), "fp32")
            wishes = replace(wishes, precision=precision, metadata=False, allow_unmatched=True)
            _check_types(base)
            return write_merge(Inputs(_without_recipe(base), nets, weights), output, wishes)


def _recipe(base: Base) -> dict[str, Any]:
    text = base.files[0].weights.metadata.get(RECIPE_KEY)
    try:
        recipe = parse_json(text or "null", str(base.path))
    except ConfigError:
        recipe = None
    if not isinstance(recipe, dict) or recipe.get("mode") != "checkpoint" or not _is_sound(recipe):
        raise InputError(
            f"{base.path}: has no recipe of networks merged into it, so there is nothing to undo"
        )
    return recipe


def _is_sound(recipe: Mapping[str, Any]) -> bool:
    """Whether a recipe has the parts that a merge writes; it may be anybody's."""
    networks = recipe.get("networks")
    return (
        isinstance(networks, list)
        and bool(networks)
        and all(
            isinstance(row, dict)
            and isinstance(row.get("file"), str)
            # The file's name is written; a path could name any file here.
            and Path(row["file"]).name == row["file"]
            and isinstance(row.get("sha256"), str)
            and isinstance(row.get("ratio"), int | float)
            for row in networks
        )
        and isinstance(recipe.get("blocks"), str | None)
        and isinstance(recipe.get("base_dtype"), str | None)
    )


def _find(sources: Sequence[Mapping[str, Any]], names: Sequence[str], folder: Path) -> list[Path]:
    """The files of the recipe: of the names given, else beside the merged file or in the current folder."""
    given = {Path(name).name: Path(name) for name in names}
    paths = []
    for source in sources:
        name = str(source["file"])
        places = [given[name]] if name in given else [Path(name), folder / name]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise InputError(
                f"{name}: is needed to undo the merge; say where it is: lora-merge --undo MERGED {name}"
            )
        paths.append(path)
    return paths


def _check(networks: Sequence[Applied], sources: Sequence[Mapping[str, Any]]) -> None:
    for applied, source in zip(networks, sources, strict=True):
        if applied.sha256 != source["sha256"]:
            raise InputError(
                f"{applied.name}: is not the file that was merged; its sha256 differs from the recipe's"
            )
        tied = next((m.name for m in applied.network.modules.values() if needs_base(m.keys)), None)
        if tied:
            raise InputError(
                f"{applied.name}: the change of {tied} depends on the base's weights, so it cannot be subtracted"
            )


def _check_types(base: Base) -> None:
    for spots in base.spots().values():
        for spot in spots.values():
            if base.info(spot.file, spot.key).dtype not in ("F32", "F64"):
                raise InputError(
                    f"{base.path}: is not fp32, and rounding has lost what was there; only merges with "
                    "--save-precision fp32 go back"
                )


def _without_recipe(base: Base) -> Base:
    for file in base.files:
        file.weights.metadata.pop(RECIPE_KEY, None)
        file.weights.metadata.pop("modelspec.merged_from", None)
    return base
