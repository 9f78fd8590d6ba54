"""What is to be done to a caption."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lorapipe_dataset.clean.settings import Lines, Order, RatingPlace, Style, TriggerPlace
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.pictures.captions import KEEP_MARK

Spelling = Literal["keep", "spaces", "underscores"]
Algebra = Literal["union", "intersect", "subtract"]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The options that change captions. Nothing is done by default but trimming, NFC, and taking repeats out.

    Keys of the mappings, and the tags in ``implications``, are compared forms (:func:`~.tags.key_maker`).
    ``aliases`` and ``replace``: tag -> tags in its place (none: it goes). ``regexes``: (expression, replacement) on
    each tag, ``phrases`` on the whole caption. ``drop``, ``keep``, ``only``: patterns. ``categories``: key -> category.
    ``strip_invariant``: share in 0..1. ``count_tokens`` counts a text's tokens. ``mark``: the trainer's
    ``keep_tokens_separator``, behind which what stays in front ends.
    """

    style: Style = "tags"
    split: str = ","
    join: str = ", "
    mark: str = KEEP_MARK
    lines: Lines = "each"
    spelling: Spelling = "keep"
    escape: bool | None = None
    lower: bool = False
    strip_weights: bool = False
    expand_wildcards: bool = False
    dedupe: bool = True
    phrases: Sequence[tuple[str, str]] = ()
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    replace: Mapping[str, Sequence[str]] = field(default_factory=dict)
    regexes: Sequence[tuple[str, str]] = ()
    drop: Sequence[str] = ()
    keep: Sequence[str] = ()
    only: Sequence[str] = ()
    drop_categories: Sequence[str] = ()
    only_categories: Sequence[str] = ()
    categories: Mapping[str, str] = field(default_factory=dict)
    split_characters: bool = False
    rating: RatingPlace = "keep"
    several_people: bool = False
    implications: Mapping[str, Sequence[str]] = field(default_factory=dict)
    add_implied: bool = False
    overlap: bool = False
    strip_invariant: float | None = None
    algebra: Algebra | None = None
    trigger: str = ""
    trigger_place: TriggerPlace = "first"
    add: Sequence[str] = ()
    order: Order = "keep"
    descending: bool = False
    keep_first: int = 0
    category_order: Sequence[str] = ("character", "copyright", "artist", "general")
    seed: int = 0
    first: Sequence[str] = ()
    last: Sequence[str] = ()
    max_tags: int | None = None
    max_tokens: int | None = None
    count_tokens: Callable[[str], int] | None = None
    prefix: str = ""
    suffix: str = ""
    sentences: int | None = None
    if_empty: str = ""

    def __post_init__(self) -> None:
        for name in ("split", "join"):
            mark = getattr(self, name).strip()
            if len(mark) != 1 or mark.isalnum() or mark in "_\\(){}|-'\"":
                raise ConfigError(
                    f"--{name} {getattr(self, name)!r}: one sign between tags, such as ',' or ';', is needed"
                )
        mark = self.mark
        if not mark.strip() or mark != mark.strip() or any(sign in mark for sign in self.separators):
            raise ConfigError(
                f"--keep-tokens-separator {mark!r}: signs such as '|||' without a separator in them are needed"
            )
        given = (self.trigger, self.prefix, self.suffix, *self.add)
        if self.expand_wildcards and any("{" in text for text in given):
            raise ConfigError("--expand-wildcards cannot be with braces in what every caption gets")
        if self.strip_invariant is not None and self.if_empty:
            raise ConfigError("--strip-invariant and --if-empty: do the one first, then the other")
        cut = self.max_tags is not None or self.max_tokens is not None
        if cut and (self.order == "frequency" or self.strip_invariant is not None):
            raise ConfigError(
                "--max-tags and --max-tokens change how often tags stand in the captions: "
                "sort by frequency or strip invariant tags in a run of its own first"
            )
        if self.strip_invariant is not None and not 0 < self.strip_invariant <= 1:
            raise ConfigError(
                f"--strip-invariant {self.strip_invariant:g}: a share above 0, up to 1, is needed"
            )
        if (self.max_tokens is not None or self.order == "tokens") and self.count_tokens is None:
            raise ConfigError("--max-tokens and --order tokens need something that counts tokens")

    @property
    def separators(self) -> tuple[str, ...]:
        """The signs between tags in what is read, the one that is written first."""
        return tuple(dict.fromkeys((self.join.strip(), self.split.strip())))

    @property
    def needs_all(self) -> bool:
        """Whether all captions have to be read before the first can be written."""
        return self.order == "frequency" or self.strip_invariant is not None


@dataclass(frozen=True)
class Facts:
    """What is known of a caption besides its text: categories and probabilities by key, tags of its counterpart."""

    categories: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    other: Sequence[str] | None = None


NO_FACTS = Facts()
