"""The command line of ``lora-tag``, read and checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorapipe_engine.errors import ConfigError
from lorapipe_tagger.captions.shape import Shape
from lorapipe_tagger.captions.texts import AUTO, compared, read_pair_file, read_pairs
from lorapipe_tagger.captions.write import Existing
from lorapipe_tagger.models.labels import Labels
from lorapipe_tagger.models.names import ModelFiles
from lorapipe_tagger.scoring.combine import How
from lorapipe_tagger.scoring.pipeline import Work
from lorapipe_tagger.scoring.select import Rules
from lorapipe_tagger.sources import Collision


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line. ``thresholds``: by category a number, OFF, or "auto"; those left out are the model's."""

    inputs: Sequence[str]
    recursive: bool
    models: Sequence[str]
    combine: How
    revision: str | None
    model_dir: Path | None
    offline: bool
    work: Work
    cache: bool
    thresholds: Mapping[str, float | str]
    mcut: bool
    exclude: Sequence[str]
    keep: Sequence[str]
    shape: Shape
    replacements: Sequence[str]
    aliases: Path | None
    implications: Path | None
    trigger_from_folder: bool
    transparent_tag: bool
    existing: Existing
    extension: str
    output_dir: Path | None
    collision: Collision
    write: bool
    dry_run: bool
    jsonl: bool | None
    frequency: bool
    explain: bool
    report: Path | None
    embeddings: Path | None
    force: bool


def rules_for(model: ModelFiles, options: Options) -> Rules:
    """A model's thresholds, its own where none were asked for.

    Raises ConfigError for "auto" where the balanced threshold is not known.
    """
    thresholds: dict[str, float] = dict(model.adapter.thresholds)
    for category, value in options.thresholds.items():
        if isinstance(value, float):
            thresholds[category] = value
        elif model.balanced is None:
            raise ConfigError(
                f"threshold {AUTO}: where precision and recall are equal is not known of {model.name}; "
                f"give a number such as 0.35"
            )
        else:
            thresholds[category] = model.balanced
    return Rules(thresholds=thresholds, mcut=options.mcut, exclude=options.exclude, keep=options.keep)


def shape_for(labels: Labels, options: Options) -> Shape:
    """The shape of captions with what files say and what the model knows of series.

    Raises ConfigError or InputError for files and pairs that cannot be read.
    """
    return replace(
        options.shape,
        replacements=read_pairs(options.replacements, labels.names),
        aliases=read_pair_file(options.aliases) if options.aliases else {},
        implications=compared(read_pair_file(options.implications)) if options.implications else {},
        series=labels.series,
    )
