"""What a person asks ``lora-clean`` for, checked: settings become rules and options."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorapipe_dataset.clean.captions.cleaner import check_replacements
from lorapipe_dataset.clean.captions.rules import Rules
from lorapipe_dataset.clean.captions.words import (
    check_categories,
    read_categories,
    read_implications,
    read_list,
    read_pair_file,
    read_pairs,
    resolve,
)
from lorapipe_dataset.clean.checks import check_options
from lorapipe_dataset.clean.settings import (
    DrySettings,
    Existing,
    FormSettings,
    InputSettings,
    OrderSettings,
    TagSettings,
    TriggerCheckSettings,
    UndoSettings,
    WriteSettings,
)
from lorapipe_dataset.texts.tokens import token_counter
from lorapipe_engine.command.modes import Chosen
from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.pictures.caption_files import caption_suffix
from lorapipe_engine.pictures.tag_lists import split_list


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of ``lora-clean``.

    ``source``: format of what is read, None to see by the file; ``target``: format of what is written, None for where
    it was read from. ``other``: folder of the second captions of a union and the like. ``categories``: of a sidecar's
    tags, in order. ``check_trigger``: only look whether captions have this. ``run``: the run that ``undo`` takes back,
    by default the user's newest. ``encoding``: of captions that are not UTF-8 (UTF-16 with a mark is known).
    """

    rules: Rules
    inputs: Sequence[str] = ()
    recursive: bool = False
    extensions: Sequence[str] = (".txt", ".caption")
    source: str | None = None
    target: str | None = None
    output: Path | None = None
    other: Path | None = None
    categories: Sequence[str] = ("character", "general")
    existing: Existing = "skip"
    create: bool = False
    no_txt: bool = False
    check_trigger: str | None = None
    frequency: bool = False
    dry_run: bool = False
    undo: bool = False
    run: str | None = None
    jsonl: bool | None = None
    force: bool = False
    encoding: str | None = None

    @classmethod
    def of(cls, inputs: Sequence[str], chosen: Chosen) -> Options:
        """The options that the command line means. Raises ConfigError for what no option can be."""
        read, write = chosen[InputSettings], chosen[WriteSettings]
        others = {name: getattr(write, name) for name in ("union", "intersect", "subtract")}
        algebra = [name for name, folder in others.items() if folder is not None]
        if len(algebra) > 1:
            raise ConfigError(f"--{algebra[0]} and --{algebra[1]} exclude each other; run twice")
        rules = rules_of(chosen, algebra[0] if algebra else None)
        check_options(inputs, chosen)
        extensions = [caption_suffix(text, "--ext") for text in read.extensions]
        return cls(
            rules=rules,
            inputs=inputs,
            recursive=read.recursive,
            extensions=tuple(text.lower() for text in extensions) or (".txt", ".caption"),
            source=read.source,
            target=write.target,
            output=write.output,
            other=others[algebra[0]] if algebra else None,
            categories=check_categories([read.categories], "--categories"),
            existing=write.existing,
            create=read.if_empty is not None,
            no_txt=write.no_txt,
            check_trigger=chosen[TriggerCheckSettings].check_trigger,
            frequency=write.frequency,
            dry_run=chosen[DrySettings].dry_run,
            undo=chosen[UndoSettings].undo,
            run=chosen[UndoSettings].run,
            jsonl=write.jsonl,
            force=write.force,
            encoding=read.encoding,
        )

    def __post_init__(self) -> None:
        if self.target in ("kohya", "metadata", "csv") and self.output is None:
            raise ConfigError(f"--to {self.target}: -o FILE is needed as well")
        if self.target is None and self.output is not None:
            raise ConfigError("-o needs --to: txt, caption, kohya, metadata or csv")
        if self.other is not None and not self.other.is_dir():
            raise ConfigError(f"{self.other}: no such folder of captions")
        if self.encoding is not None:
            _check_encoding(self.encoding)
        if self.run is not None and not self.undo:
            raise ConfigError("--run names a run to take back: --undo is needed as well")

    @property
    def writes_texts(self) -> bool:
        """Whether captions go to text files, in place or elsewhere."""
        return self.target in (None, "txt", "caption")

    @property
    def in_place(self) -> bool:
        """Whether captions go back to where they were read."""
        return self.target is None

    def home_of(self, root: Path | None) -> Path | None:
        """The folder that the user named for caption files of ``root``: links below it are not followed."""
        return self.output if self.output is not None and self.writes_texts else root

    def inputs_for_undo(self, folders: Iterable[Path]) -> list[Path]:
        """What to name to take a run back: the folders of the command line, else those of the files."""
        named = [Path(word) for word in self.inputs if Path(word).is_dir()]
        inputs = list(folders)
        if named and all(any(one == root or root in one.parents for root in named) for one in inputs):
            return named
        return inputs


def _check_encoding(name: str) -> None:
    """Raise ConfigError for a name that is no encoding of text."""
    try:
        "".encode(name)
    except (LookupError, ValueError, UnicodeError):
        raise ConfigError(
            f"--encoding {name}: no encoding; cp1251, cp1252, cp932, gb18030, utf-16-le are some"
        ) from None


def rules_of(chosen: Chosen, algebra: str | None = None) -> Rules:
    """The rules that the command line means. Raises ConfigError or InputError."""
    read, form = chosen[InputSettings], chosen[FormSettings]
    tags, order = chosen[TagSettings], chosen[OrderSettings]
    check_replacements(tags.regex, "--regex")
    check_replacements(tags.phrase, "--phrase")
    lines = {
        "trigger": order.trigger,
        "prefix": read.prefix,
        "suffix": read.suffix,
        "if-empty": read.if_empty,
    }
    for name, text in lines.items():
        if len((text or "").splitlines()) > 1:
            raise ConfigError(f"--{name}: one line is needed")
    if "trigger_place" in chosen.given and not order.trigger:
        raise ConfigError("--trigger-place has a use only with --trigger")
    return Rules(
        style=read.style,
        split=read.split,
        join=read.join,
        mark=read.keep_tokens_separator,
        lines=form.lines,
        spelling="keep" if form.spaces is None else "spaces" if form.spaces else "underscores",
        escape=form.escape,
        lower=form.lower,
        strip_weights=form.strip_weights,
        expand_wildcards=form.expand_wildcards,
        dedupe=form.dedupe,
        algebra=algebra,  # type: ignore[arg-type]
        **_tag_rules(tags),
        trigger=order.trigger,
        trigger_place=order.trigger_place,
        add=split_list(order.add),
        first=split_list(order.first),
        last=split_list(order.last),
        order=order.order,
        descending=order.descending,
        keep_first=order.keep_first,
        category_order=check_categories([read.categories], "--categories"),
        seed=order.seed,
        max_tags=order.max_tags,
        max_tokens=order.max_tokens,
        count_tokens=_counter(order),
        sentences=order.sentences,
        prefix=read.prefix,
        suffix=read.suffix,
        if_empty=read.if_empty or "",
    )


def _tag_rules(tags: TagSettings) -> dict[str, Any]:
    """The rules on single tags, their files read."""
    return {
        "phrases": tags.phrase,
        "regexes": tags.regex,
        "aliases": resolve(_merged(map(read_pair_file, tags.aliases)), "--aliases"),
        "replace": read_pairs(tags.replace, "--replace"),
        "implications": _merged(map(read_implications, tags.implications)),
        "add_implied": tags.add_implied,
        "drop": [*split_list(tags.drop), *read_list(tags.drop_file)],
        "keep": split_list(tags.keep),
        "only": [*split_list(tags.only), *read_list(tags.only_file)],
        "drop_categories": check_categories(tags.drop_category, "--drop-category"),
        "only_categories": check_categories(tags.only_category, "--only-category"),
        "categories": read_categories(tags.tags_file) if tags.tags_file else {},
        "split_characters": tags.split_characters,
        "rating": tags.rating,
        "several_people": tags.several_people,
        "overlap": tags.overlap,
        "strip_invariant": tags.strip_invariant,
    }


def _merged(pairs: Iterable[Mapping[str, list[str]]]) -> dict[str, list[str]]:
    together: dict[str, list[str]] = {}
    for one in pairs:
        together |= one
    return together


def _counter(order: OrderSettings) -> Callable[[str], int] | None:
    if order.max_tokens is None and order.order != "tokens":
        return None
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    count, exact = token_counter(order.tokenizer, hub)
    if not exact:
        say("lora-clean: note: tokens are estimated; --tokenizer DIR (vocab.json, merges.txt) counts them")
    return count
