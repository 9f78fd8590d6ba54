"""Captions as texts: missing, empty, too long, without the trigger, all the same."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from lorapipe_dataset.check.findings import Check, Finding, Rule, Skipped
from lorapipe_dataset.check.options import Options
from lorapipe_dataset.check.pictures.dataset import Dataset, Picture
from lorapipe_dataset.texts.tokens import token_counter
from lorapipe_dataset.texts.vocabulary import canonical
from lorapipe_engine.datasets.leading import is_common
from lorapipe_engine.pictures.layout import concept_of

FEW_TAGS = 3
MOST_TOKENS = 225  # that training reads of a caption
SAME_SHARE = 0.10
GUESS_SHARE = 0.8

MISSING = Rule(
    "missing-caption",
    "error",
    "Pictures without a caption: their folder's name is trained",
    "lora-tag DIR, or write FILE.txt beside them",
)
EMPTY = Rule(
    "empty-caption",
    "error",
    "Empty captions",
    "lora-tag DIR (captions with words in them stay), or write them",
)
UNDECODABLE = Rule(
    "bad-encoding",
    "error",
    "Captions that cannot be read, most often because they are not UTF-8",
    "lora-clean DIR --encoding NAME, as cp1251, cp1252 or cp932, or save them as UTF-8 in an editor; remove links that "
    "lead nowhere",
)
LINKED = Rule(
    "linked-caption",
    "warning",
    "Captions that are links out of the dataset: lora-train trains them, the other tools neither change, show nor copy "
    "them",
    "copy the files into the dataset, if their words are meant, else remove the links",
)
TWO_CAPTIONS = Rule(
    "two-captions",
    "warning",
    "Pictures with more than one caption file: one of them is read",
    "keep one; put what the others say into it",
)
SEVERAL_LINES = Rule(
    "several-lines",
    "warning",
    "Captions of several lines: only the first is trained",
    "join the lines (--fix does, with commas)",
    fixable=True,
)
NO_TRIGGER = Rule(
    "no-trigger",
    "error",
    "Captions without the trigger",
    "lora-clean --trigger WORD (or --fix, which puts it first)",
    fixable=True,
)
TRIGGER_LATER = Rule(
    "trigger-not-first",
    "warning",
    "The trigger is not first, though the first tags are kept in place",
    "lora-clean --trigger WORD (or --fix, which moves it to the front)",
    fixable=True,
)
TOO_LONG = Rule(
    "too-many-tokens",
    "warning",
    "Captions longer than the text encoder reads",
    "lora-clean --max-tokens N (it leaves out the last tags)",
)
MIXED = Rule(
    "mixed-style",
    "warning",
    "Sentences among tags, or tags among sentences",
    "write all captions in one style",
)
SAME = Rule(
    "same-caption",
    "warning",
    "One caption on more than a tenth of the pictures",
    "tag them again: what differs between them is not learned",
)
SHORT = Rule(
    "few-tags",
    "warning",
    "Captions of fewer than three tags",
    "lora-tag DIR --existing merge with a lower threshold",
)


def find_missing(dataset: Dataset, _options: Options) -> Iterator[Finding]:
    """Pictures without a caption that can be used."""
    for picture in dataset.trained:
        if picture.trouble:
            link = "" if picture.outside is None else "a link out of the dataset, "
            yield Finding(UNDECODABLE, f"{link}{picture.trouble}", _caption(picture))
        elif picture.outside is not None:
            continue
        elif picture.caption_path is None:
            place = picture.place
            # A folder "3_" has a number and no name: an empty caption is trained then.
            is_bare = place.repeats is not None and not concept_of(place.path.name)
            text = "would be empty" if is_bare else f"would be '{place.concept}'"
            yield Finding(MISSING, text, (picture.path,))
        elif not picture.caption:
            yield Finding(EMPTY, "no text in it", (picture.path,))
        elif picture.lines > 1:
            yield Finding(SEVERAL_LINES, f"{picture.lines} lines", (picture.path,))


def find_several(dataset: Dataset, _options: Options) -> Iterator[Finding]:
    """Pictures for which there are captions that no one reads."""
    for picture in dataset.pictures:
        if picture.more_captions and picture.caption_path is not None:
            names = ", ".join(path.name for path in picture.more_captions)
            text = f"{picture.caption_path.name} is read, {names} not"
            yield Finding(TWO_CAPTIONS, text, (picture.path, *picture.more_captions))


def find_linked(dataset: Dataset, _options: Options) -> Iterator[Finding]:
    """Captions whose words are not the dataset's."""
    for picture in dataset.pictures:
        if picture.outside is not None and not picture.trouble:
            yield Finding(LINKED, "a link out of the dataset", _caption(picture))


def _caption(picture: Picture) -> tuple[Path, ...]:
    return (picture.path,) if picture.caption_path is None else (picture.path, picture.caption_path)


# -------------------------------------------------------------------------------- the trigger


def find_trigger(dataset: Dataset, options: Options) -> Iterator[Finding]:
    """Captions that lack the trigger, or have it where it is shuffled away."""
    trigger = options.trigger or guess_trigger(dataset)
    if trigger is None:
        raise Skipped("no trigger is known; give --trigger WORD")
    guessed = options.trigger is None
    where = " (most captions have it; --trigger WORD makes sure)" if guessed else ""
    word = canonical(trigger)
    for picture in dataset.captioned:
        tags = picture.keys
        data = {"trigger": trigger}
        if not _has(picture, word, tags):
            milder = "warning" if guessed else None
            yield Finding(NO_TRIGGER, f"no '{trigger}'{where}", (picture.path,), data, milder)  # type: ignore[arg-type]
        elif (
            word in tags[options.fixed_tokens :]
            and word not in tags[: options.fixed_tokens]
            and options.fixed_tokens
        ):
            yield Finding(TRIGGER_LATER, f"'{trigger}' is tag {tags.index(word) + 1}", (picture.path,), data)


def _has(picture: Picture, word: str, tags: Sequence[str]) -> bool:
    return word in tags or (picture.is_text and word in canonical(picture.caption or ""))


def guess_trigger(dataset: Dataset) -> str | None:
    """The concept's name where at least half of the captions have it as a tag, else the first tag that four fifths of
    them share, else None.
    """
    captioned = dataset.captioned
    for concept in dataset.concepts if len(dataset.concepts) == 1 else ():
        if 2 * sum(canonical(concept) in picture.keys for picture in captioned) > len(captioned):
            return concept
    firsts = Counter(picture.tags[0] for picture in captioned if picture.tags)
    word, count = firsts.most_common(1)[0] if firsts else ("", 0)
    enough = len(captioned) >= 5 and GUESS_SHARE * len(captioned) <= count
    return word if enough and not is_common(word) else None


# -------------------------------------------------------------------------------- length and style


def find_long(dataset: Dataset, options: Options) -> Iterator[Finding]:
    """Captions that are cut off."""
    hub = Path(
        os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub"
    )
    count, exact = token_counter(options.tokenizer_dir, hub.expanduser())
    for picture in dataset.captioned:
        caption = picture.caption or ""
        # A token has a letter at least.
        if len(caption) <= options.max_token_length:
            continue
        tokens = count(caption)
        if tokens > options.max_token_length:
            text = f"{'' if exact else 'about '}{tokens} tokens, {options.max_token_length} are read"
            if options.max_token_length < MOST_TOKENS:
                text += f" (up to {MOST_TOKENS} with lora-train --max_token_length {MOST_TOKENS})"
            yield Finding(TOO_LONG, text, (picture.path,), {"tokens": tokens, "exact": exact})


def find_styles(dataset: Dataset, _options: Options) -> Iterator[Finding]:
    """Captions unlike the others, or too much like them."""
    style = dataset.style
    for picture in dataset.captioned:
        if picture.is_text != (style == "text"):
            odd = "tags" if style == "text" else "a sentence"
            yield Finding(MIXED, f"{odd} among {'sentences' if style == 'text' else 'tags'}", (picture.path,))
        elif style == "tags" and len(picture.tags) < FEW_TAGS:
            yield Finding(SHORT, f"{len(picture.tags)} tag{'s' * (len(picture.tags) != 1)}", (picture.path,))
    alike: dict[str, list[Picture]] = {}
    for picture in dataset.captioned:
        alike.setdefault(", ".join(sorted(picture.keys)), []).append(picture)
    for group in alike.values():
        if len(group) > 2 and len(group) > SAME_SHARE * len(dataset.trained):
            share = len(group) / len(dataset.trained)
            text = f"{share:.0%} have '{_short(group[0].caption or '')}'"
            yield Finding(SAME, text, tuple(picture.path for picture in group))


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


CHECKS = (
    Check((MISSING, EMPTY, UNDECODABLE, SEVERAL_LINES), find_missing),
    Check((LINKED,), find_linked),
    Check((TWO_CAPTIONS,), find_several),
    Check((NO_TRIGGER, TRIGGER_LATER), find_trigger),
    Check((TOO_LONG,), find_long),
    Check((MIXED, SHORT, SAME), find_styles),
)
