"""What options say together that nobody can mean: each a line before anything is read."""

from __future__ import annotations

from collections.abc import Sequence

from lorapipe_dataset.clean.settings import (
    InputSettings,
    OrderSettings,
    TagSettings,
    TriggerCheckSettings,
    WriteSettings,
)
from lorapipe_dataset.sidecars import POST_FORMATS, TEXT_FORMATS
from lorapipe_engine.command.modes import Chosen
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.pictures.tag_lists import split_list
from lorapipe_engine.pictures.triggers import check_no_mark

_WORDS = (  # options that do nothing where they are empty, as a variable of a script may be
    (TriggerCheckSettings, "check_trigger"),
    (OrderSettings, "trigger"),
    (OrderSettings, "add"),
    (OrderSettings, "first"),
    (OrderSettings, "last"),
    (TagSettings, "drop"),
    (TagSettings, "keep"),
    (TagSettings, "only"),
)


def check_options(inputs: Sequence[str], chosen: Chosen) -> None:
    """Raise ConfigError for options that would do nothing, or the contrary of each other."""
    for kind, name in _WORDS:
        value = getattr(chosen[kind], name) if name in chosen.given else None
        words = [value] if isinstance(value, str) else value
        if words is not None and not split_list(words):
            raise ConfigError(f"--{name.replace('_', '-')}: an empty word, which does nothing")
    order, mark = chosen[OrderSettings], chosen[InputSettings].keep_tokens_separator
    check_no_mark([order.trigger], "--trigger", mark)
    check_no_mark(order.add, "--add", mark)
    write = chosen[WriteSettings]
    if write.force and write.target in ("txt", "caption"):
        raise ConfigError(
            f"--force replaces a file of many captions; --to {write.target} has --existing replace for caption files "
            "that are there"
        )
    if write.no_txt and write.target in ("txt", "caption"):
        raise ConfigError(f"--to {write.target} writes caption files and --no-txt none; give one of them")
    _check_categories(inputs, chosen)


def _check_categories(inputs: Sequence[str], chosen: Chosen) -> None:
    """Raise ConfigError for an option that goes by tags' categories where nothing tells them."""
    tags, order, read = chosen[TagSettings], chosen[OrderSettings], chosen[InputSettings]
    asked = {
        "--drop-category": tags.drop_category,
        "--only-category": tags.only_category,
        "--order category": order.order == "category",
    }
    option = next((name for name, given in asked.items() if given), None)
    records = not inputs or "-" in inputs or any(word.lower().endswith(".json") for word in inputs)
    known = tags.tags_file is not None or read.source in (*POST_FORMATS, *TEXT_FORMATS)
    if option is not None and not (records or known):
        raise ConfigError(
            f"{option}: nothing tells the tags' categories here; give --tags CSV, a tagger's selected_tags.csv"
        )
