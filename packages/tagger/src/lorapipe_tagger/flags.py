"""From the words of the command line to :class:`~lorapipe_tagger.options.Options`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorapipe_engine.command.tool import say
from lorapipe_tagger.captions.shape import Shape
from lorapipe_tagger.captions.texts import OFF, parse_threshold, split_list
from lorapipe_tagger.models.names import DEFAULT
from lorapipe_tagger.options import Options
from lorapipe_tagger.scoring.pipeline import Work, default_workers

CATEGORIES = ("general", "character", "copyright", "artist", "meta", "quality")
_MILLION = 1_000_000


def read_flags(inputs: Sequence[str], flags: Mapping[str, Any]) -> Options:
    """The options that the flags mean. Raises ConfigError for what no option can be."""
    direct = ("recursive", "combine", "revision", "offline", "mcut", "existing", "collision", "dry_run")
    more = (
        "jsonl",
        "frequency",
        "explain",
        "force",
        "replacements",
        "aliases",
        "implications",
        "trigger_from_folder",
    )
    extension = flags["extension"]
    folders: dict[str, Any] = {
        name: flags[name].expanduser() if flags[name] else None
        for name in ("model_dir", "output_dir", "report", "embeddings")
    }
    return Options(
        inputs=inputs,
        models=flags["models"] or (DEFAULT,),
        work=_read_work(flags),
        cache=not flags["no_cache"],
        thresholds=read_thresholds(flags),
        exclude=split_list(flags["exclude"]),
        keep=split_list(flags["keep"]),
        shape=_read_shape(flags),
        transparent_tag=flags["transparent_tag"],
        extension=extension if extension.startswith(".") else f".{extension}",
        write=not (flags["no_txt"] or flags["explain"]),
        **folders,
        **{name: flags[name] for name in (*direct, *more)},
    )


def read_thresholds(flags: Mapping[str, Any]) -> dict[str, float | str]:
    """Thresholds by category, as far as the flags say; ``--threshold`` holds for general and character tags."""
    both = parse_threshold(flags["threshold"], "--threshold")
    found: dict[str, float | str] = {}
    for category in CATEGORIES:
        value = parse_threshold(flags[category], f"--{category}")
        if value is None and category in ("general", "character"):
            value = both
        if value is not None:
            found[category] = value
        if value == OFF and flags[category] not in (None, "off"):
            say(
                f"lora-tag: note: --{category} {flags[category]} is above 1, so there will be no {category} tags"
            )
    return found


def _read_work(flags: Mapping[str, Any]) -> Work:
    return Work(
        batch=flags["batch"],
        workers=flags["workers"] or default_workers(),
        max_pixels=round(flags["max_pixels"] * _MILLION),
        resampling=flags["preprocess"],
        device=flags["device"],
        int8=flags["int8"],
    )


def _read_shape(flags: Mapping[str, Any]) -> Shape:
    lists: dict[str, Any] = {name: split_list(flags[name]) for name in ("add", "first", "last")}
    words = (
        "drop_overlap",
        "expand_character",
        "max_tags",
        "order",
        "rating",
        "spaces",
        "escape",
        "separator",
    )
    return Shape(
        trigger=flags["trigger"].strip(),
        characters="first" if flags["character_tags_first"] else flags["characters"],
        **lists,
        **{name: flags[name] for name in words},
    )
