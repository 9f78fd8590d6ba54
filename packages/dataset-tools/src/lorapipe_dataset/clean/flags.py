"""From the words of the command line to :class:`~lorapipe_dataset.clean.options.Options`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorapipe_dataset.check.tokens import token_counter
from lorapipe_dataset.clean.cleaner import check_replacements
from lorapipe_dataset.clean.options import Options
from lorapipe_dataset.clean.rules import Rules
from lorapipe_dataset.clean.words import (
    check_categories,
    read_categories,
    read_implications,
    read_list,
    read_pair_file,
    read_pairs,
    resolve,
    split_list,
)
from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import ConfigError

_PLAIN = (
    "style", "split", "join", "lines", "escape", "lower", "strip_weights", "expand_wildcards", "dedupe",
    "split_characters", "rating", "several_people", "add_implied", "overlap", "strip_invariant", "trigger",
    "trigger_place", "order", "descending", "keep_first", "seed", "max_tags", "max_tokens", "prefix", "suffix",
    "sentences",
)  # fmt: skip
_FILES = (
    "recursive",
    "existing",
    "no_txt",
    "dry_run",
    "undo",
    "run",
    "jsonl",
    "frequency",
    "check_trigger",
    "source",
    "target",
    "output",
    "force",
)


def read_flags(inputs: Sequence[str], flags: Mapping[str, Any]) -> Options:
    """The options that the flags mean. Raises ConfigError for what no option can be."""
    algebra = [name for name in ("union", "intersect", "subtract") if flags[name] is not None]
    if len(algebra) > 1:
        raise ConfigError(f"--{algebra[0]} and --{algebra[1]} exclude each other; run twice")
    extensions = [text if text.startswith(".") else f".{text}" for text in flags["extensions"]]
    return Options(
        rules=read_rules(flags, algebra[0] if algebra else None),
        inputs=inputs,
        extensions=tuple(text.lower() for text in extensions) or (".txt", ".caption"),
        other=flags[algebra[0]] if algebra else None,
        create=flags["if_empty"] is not None,
        categories=check_categories([flags["categories"]], "--categories"),
        **{name: flags[name] for name in _FILES},
    )


def read_rules(flags: Mapping[str, Any], algebra: str | None = None) -> Rules:
    """The rules that the flags mean. Raises ConfigError or InputError."""
    check_replacements(flags["regex"], "--regex")
    check_replacements(flags["phrase"], "--phrase")
    for name in ("trigger", "prefix", "suffix", "if_empty"):
        if len((flags[name] or "").splitlines()) > 1:
            raise ConfigError(f"--{name.replace('_', '-')}: one line is needed")
    fixed: dict[str, Any] = {name: flags[name] for name in _PLAIN}
    return Rules(
        **fixed,
        spelling=flags["spelling"] or "keep",
        category_order=check_categories([flags["categories"]], "--categories"),
        algebra=algebra,  # type: ignore[arg-type]
        phrases=flags["phrase"],
        regexes=flags["regex"],
        aliases=resolve(_merged(map(read_pair_file, flags["aliases"])), "--aliases"),
        replace=read_pairs(flags["replace"], "--replace"),
        implications=_merged(map(read_implications, flags["implications"])),
        drop=[*split_list(flags["drop"]), *read_list(flags["drop_file"])],
        keep=split_list(flags["keep"]),
        only=[*split_list(flags["only"]), *read_list(flags["only_file"])],
        drop_categories=check_categories(flags["drop_category"], "--drop-category"),
        only_categories=check_categories(flags["only_category"], "--only-category"),
        categories=read_categories(flags["tags_file"]) if flags["tags_file"] else {},
        add=split_list(flags["add"]),
        first=split_list(flags["first"]),
        last=split_list(flags["last"]),
        if_empty=flags["if_empty"] or "",
        count_tokens=_counter(flags),
    )


def _merged(found: Any) -> dict[str, list[str]]:
    pairs: dict[str, list[str]] = {}
    for one in found:
        pairs |= one
    return pairs


def _counter(flags: Mapping[str, Any]) -> Callable[[str], int] | None:
    if flags["max_tokens"] is None and flags["order"] != "tokens":
        return None
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    count, exact = token_counter(flags["tokenizer"], hub)
    if not exact:
        say("lora-clean: note: tokens are estimated; --tokenizer DIR (vocab.json, merges.txt) counts them")
    return count
