"""The captions that are held to the base, one for each picture of a step, as ``--preserve`` names them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lorapipe_engine.command.documents import read_text
from lorapipe_engine.datasets.scan import Dataset
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.pictures.batches import stream
from lorapipe_engine.pictures.captions import CaptionRule
from lorapipe_engine.pictures.triggers import has_word, without_words
from lorapipe_engine.sampling.choosing import Caption, find_trigger
from lorapipe_engine.settings.preserve import Preserve, read_preserve

MOST = 100_000  # captions of a file


class Preserved:
    """Which captions are held at which steps. ``asked`` has its file read (see :func:`preserved_in`)."""

    def __init__(self, asked: Preserve, seed: int) -> None:
        self.asked = asked
        self._seed = seed

    def is_at(self, step: int) -> bool:
        """Whether a step (from 0) has the term."""
        return step % self.asked.every == 0

    @property
    def marks_subsets(self) -> bool:
        """Whether pictures of marked subsets are held, under their own captions."""
        return not self.asked.has_captions

    def caption(self, caption: str, rule: CaptionRule, epoch: int, index: int, turn: int) -> str:
        """What is held in the place of a picture's caption of this step. A stream of its own draws it."""
        if self.asked.swaps:
            return without_words(caption, self.asked.swaps, rule.separator)
        if len(self.asked.captions) == 1:
            return self.asked.captions[0]
        return stream(self._seed, "preserve", epoch, index, turn).choice(self.asked.captions)

    def captions(self, caption: str, rule: CaptionRule) -> Iterator[str]:
        """All that :meth:`caption` may give for a caption."""
        if self.asked.swaps:
            yield without_words(caption, self.asked.swaps, rule.separator)
        else:
            yield from self.asked.captions


def preserved_in(words: tuple[str, ...], dataset: Dataset, seed: int) -> tuple[Preserved | None, list[str]]:
    """What a run on a dataset holds to the base, None for nothing; and what the user should know.

    Raises ConfigError where nothing would be held as asked for, InputError for a file that cannot be read.
    """
    marked = [row.subset.folder.name for row in dataset.folders if row.subset.is_preserved]
    asked = read_preserve(words) or (Preserve() if marked else None)
    if asked is None:
        return None, []
    if marked and asked.has_captions:
        raise ConfigError(
            f"preserve: names captions, and the dataset file marks {marked[0]} as is_preserved; leave one of both out"
        )
    if not marked and not asked.has_captions:
        raise ConfigError(
            "preserve: names no captions; give trigger=WORD, caption=TEXT or file=FILE, or mark a subset of the "
            "dataset file as is_preserved"
        )
    if marked and (asked.every > 1 or not asked.weight):
        what = f"every={asked.every}" if asked.every > 1 else "weight=0"
        raise ConfigError(
            f"preserve: {what} would leave steps of {marked[0]} (is_preserved) without any loss; leave it out"
        )
    if asked.file is not None:
        asked = replace(asked, captions=_captions_of(asked), file=None)
    notes = [*_trigger_notes(asked, dataset), *_held_notes(asked, dataset)]
    if not asked.weight:
        return None, [*notes, "preserve does nothing at weight=0"]
    return Preserved(asked, seed), notes


def _captions_of(asked: Preserve) -> tuple[str, ...]:
    assert asked.file is not None
    text = read_text(asked.file, what="preserve")
    captions = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not 0 < len(captions) <= MOST:
        count = (
            f"has {len(captions):,} captions, {MOST:,} are the most"
            if captions
            else "has no captions, a line each"
        )
        raise ConfigError(f"preserve: {asked.file} {count}")
    return captions


def _trigger_notes(asked: Preserve, dataset: Dataset) -> list[str]:
    """Raises ConfigError for a trigger that no caption has."""
    notes = []
    for trigger, _ in asked.swaps:
        own = [row for row in dataset.pictures if not dataset.subset_of(row).is_reg]
        having = sum(has_word(_whole(row.caption, dataset.subset_of(row).captions), trigger) for row in own)
        if not having:
            raise ConfigError(
                f"preserve: no caption has the trigger {trigger!a}; name the word that the captions have"
            )
        if having < len(own) and len(asked.swaps) == 1:
            notes.append(
                f"preserve: {len(own) - having} of {len(own)} captions lack the trigger {trigger!a}: they are trained, "
                "and held to the base, alike"
            )
    return notes


def _held_notes(asked: Preserve, dataset: Dataset) -> list[str]:
    """A line where captions that are held call what is learned, as far as that can be guessed."""
    rows = [row for row in dataset.pictures if not dataset.subset_of(row).is_reg]
    own = [Caption(_whole(row.caption, dataset.subset_of(row).captions), row.repeats) for row in rows]
    trigger = find_trigger(own)
    having = [text for text in asked.captions if trigger is not None and has_word(text, trigger.word)]
    if trigger is None or not having:
        return []
    count = (
        "the caption that is held has" if len(asked.captions) == 1 else f"{len(having)} of those held have"
    )
    return [
        f"preserve: {count} {trigger.word!a} in it, as {trigger.seen} of {trigger.total} captions of an epoch: if that "
        "calls what is learned, it is held back"
    ]


def _whole(caption: str, rule: CaptionRule) -> str:
    return " ".join(part for part in (rule.prefix, caption, rule.suffix) if part)
