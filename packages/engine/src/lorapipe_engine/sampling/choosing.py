"""Prompts by which the epochs of a run are compared: with its trigger, the same without it, and others.

The trigger is the tag that stands first in most captions. Prompts are captions of the run, written as prompts.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.pictures.captions import split_tags
from lorapipe_engine.sampling.probes import ELSEWHERE, OTHERS, kinds_of, whole_words, without_words
from lorapipe_engine.sampling.prompts.editing import refuse_editing
from lorapipe_engine.sampling.prompts.tags import split_tags as split_networks
from lorapipe_engine.sampling.prompts.wildcards import Wildcards, draw_prompt

PICTURES = 8  # of the concept for each network: what lora-grid --best asks for
PROMPTS = 2  # captions that become prompts
MOST_PROMPTS = 4  # of one kind, where the user gives them
LEAST_FIRST, LEAST_ANYWHERE = 0.2, 0.5  # shares of the captions of an epoch in which a trigger stands
# First in captions of any dataset, and so no trigger.
_NO_TRIGGERS = frozenset(
    {
        *(
            "1girl",
            "1boy",
            "1other",
            "2girls",
            "2boys",
            "multiple girls",
            "multiple boys",
            "solo",
            "no humans",
        ),
        *("masterpiece", "best quality", "high quality", "highres", "absurdres", "realistic", "photo"),
        *("score_9", "score_8_up", "general", "safe"),
    }
)
_BRACKET = re.compile(r"(?<!\\)([()\[\]])")


@dataclass(frozen=True)
class Caption:
    """A caption as it is trained, and how often an epoch shows it."""

    text: str
    repeats: int = 1


@dataclass(frozen=True)
class Trigger:
    """The word that calls a concept, and in how many of an epoch's captions it stands."""

    word: str
    seen: int
    total: int


@dataclass(frozen=True)
class Prompts:
    """What is drawn with every network: ``asking`` has the trigger, ``silent`` is the same without it. ``seeds``: how
    many make enough pictures of the concept."""

    asking: tuple[str, ...]
    silent: tuple[str, ...]
    others: tuple[str, ...]

    @property
    def seeds(self) -> int:
        return -(-PICTURES // len(self.asking))

    def axis(self) -> str:
        """The values of an axis of prompts, each once, in A1111's quotes."""
        texts = dict.fromkeys(text for text, _ in kinds_of(self.asking, self.silent, self.others))
        return ",".join('"' + text.replace('"', '""') + '"' for text in texts)


def find_trigger(captions: Sequence[Caption], given: str | None = None) -> Trigger | None:
    """The trigger that is ``given`` (its first tag), else the tag that stands first in most captions, or that most
    captions have where none is often first; None where no tag is common enough."""
    total = sum(caption.repeats for caption in captions)
    if given and (named := split_tags(given)):
        return _trigger(named[0], captions, total)
    first: Counter[str] = Counter()
    anywhere: Counter[str] = Counter()
    for caption in captions:
        tags = split_tags(caption.text)
        first.update({tag: caption.repeats for tag in tags[:1] if tag.lower() not in _NO_TRIGGERS})
        anywhere.update({tag: caption.repeats for tag in set(tags) if tag.lower() not in _NO_TRIGGERS})
    files = Counter(tag for caption in captions for tag in set(split_tags(caption.text)))
    for counts, least in ((first, LEAST_FIRST), (anywhere, LEAST_ANYWHERE)):
        # What one caption of several has is a sentence.
        common = {tag: count for tag, count in counts.items() if files[tag] >= min(2, len(captions))}
        best = max(common, key=lambda tag: (common[tag], anywhere[tag], tag), default=None)
        if best is not None and common[best] >= least * total:
            return _trigger(best, captions, total)
    return None


def make_prompts(captions: Sequence[Caption], trigger: str, given: Sequence[str] = ()) -> Prompts:
    """Prompts with the trigger: the user's that have it, else two captions of usual length, else the trigger alone.

    Others are the user's without it, else two that are about nothing of the kind.
    """
    usable = [text for text in given if _is_prompt(text)]
    asking = [text for text in usable if _has(text, trigger)][:MOST_PROMPTS]
    others = [text for text in usable if not _has(text, trigger)][:MOST_PROMPTS]
    asking = asking or _usual([row.text for row in captions if _has(row.text, trigger)])
    asking = asking or [_as_prompt(trigger), f"{_as_prompt(trigger)}, {ELSEWHERE}"]
    silent = [without_words(without_words(text, trigger), _as_prompt(trigger)) for text in asking]
    return Prompts(tuple(asking), tuple(silent), tuple(others or OTHERS))


def _trigger(tag: str, captions: Sequence[Caption], total: int) -> Trigger:
    word = tag.replace("\\(", "(").replace("\\)", ")")
    return Trigger(word, sum(row.repeats for row in captions if _has(row.text, word)), total)


def _has(text: str, word: str) -> bool:
    """Whether a caption or a prompt has a word, its brackets escaped or not."""
    return any(whole_words(form).search(text) for form in (word, _as_prompt(word)))


def _usual(captions: Sequence[str]) -> list[str]:
    """Two different captions whose number of tags is nearest to the middle one."""
    texts = sorted({_as_prompt(text) for text in captions}, key=lambda text: (len(split_tags(text)), text))
    texts = [text for text in texts if _is_prompt(text, literal=True)]
    middle = max(0, (len(texts) - PROMPTS) // 2)
    return texts[middle : middle + PROMPTS]


def _as_prompt(caption: str) -> str:
    """A caption on one line, its brackets no weights."""
    return _BRACKET.sub(r"\\\1", " ".join(caption.split()))


def _is_prompt(text: str, *, literal: bool = False) -> bool:
    """Whether it can be drawn; ``literal``: only as it stands, without choices and networks."""
    try:
        drawn = draw_prompt(text, 0, Wildcards(), "prompt")
        plain, tags = split_networks(drawn, "prompt")
        refuse_editing(plain, "prompt")
    except ConfigError:
        return False
    return bool(text.strip()) and (not literal or (drawn == text and not tags))
