"""Which words a base half knows: what a tagger sees in pictures of each candidate word, against those of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorapipe_inspect.grid.cells import Cell
from lorapipe_inspect.grid.judge.constants import BROUGHT, FEWEST_OF_A_WORD
from lorapipe_inspect.grid.judge.tags import plain_tag, scores_of

WORD = "trigger"  # the axis of the candidate words
_MOST_TAGS = 4


@dataclass(frozen=True)
class Word:
    """A candidate, "" for no word at all. ``brought``: tags that its pictures have and the others' have not, nor those
    without a word, with the rise of their mean probability, 0..1. ``seen``: pictures that a tagger has looked at.
    """

    word: str
    seen: int
    brought: Sequence[tuple[str, float]]


def known_words(cells: Sequence[Cell]) -> list[Word]:
    """What each candidate word brings; none where the cells have no candidates, or no tagger has seen them."""
    pictures: dict[str, list[dict[str, float]]] = {}
    for cell in cells:
        scores = None if cell.error else scores_of(cell)
        word = cell.values.get(WORD)
        if word is not None:
            pictures.setdefault(str(word), [])
            if scores is not None:
                pictures[str(word)].append(scores)
    if len(pictures) < 2 or not any(pictures.values()):
        return []
    return [_word(word, pictures) for word in pictures]


def _word(word: str, pictures: dict[str, list[dict[str, float]]]) -> Word:
    own = pictures[word]
    # Each other word has one voice: two that bring the same thing do not hide it from a third.
    others = [seen for other, seen in pictures.items() if other not in (word, "") and seen]
    bare = pictures.get("", []) if word else []
    brought = []
    for tag in sorted({tag for scores in own for tag in scores}):
        here = float(np.mean([scores.get(tag, 0.0) for scores in own]))
        there = [float(np.mean([scores.get(tag, 0.0) for scores in seen])) for seen in others]
        without = float(np.mean([scores.get(tag, 0.0) for scores in bare])) if bare else 0.0
        rise = here - max(float(np.median(there)) if there else 0.0, without)
        if rise >= BROUGHT:
            brought.append((tag, rise))
    return Word(word, len(own), sorted(brought, key=lambda row: (-row[1], row[0])))


def lines_of(words: Sequence[Word]) -> list[str]:
    """What to say of the words: which the base half knows, which not, and of which too little was seen."""
    enough = [one for one in words if one.seen >= FEWEST_OF_A_WORD]
    known = [one for one in enough if one.brought and one.word]
    free = [one.word for one in enough if not one.brought and one.word]
    parts = []
    if known:
        parts.append(f"the base half knows {'; '.join(map(_with_tags, known))}")
    if free:
        parts.append(f"{'it' if known else 'the base'} does not know {', '.join(free)}")
    few = [one for one in words if one.seen < FEWEST_OF_A_WORD and one.word]
    if few:
        shown = ", ".join(f"{one.word} ({one.seen})" for one in few)
        parts.append(f"cannot tell with fewer than {FEWEST_OF_A_WORD} pictures of a word: {shown}")
    return ["; ".join(parts)]


def _with_tags(one: Word) -> str:
    itself = any(tag == plain_tag(one.word) for tag, _ in one.brought)
    shown = ", ".join(tag for tag, _ in one.brought[:_MOST_TAGS])
    more = f" and {len(one.brought) - _MOST_TAGS} more" if len(one.brought) > _MOST_TAGS else ""
    return f"{one.word} ({'the tagger names it: ' if itself else ''}{shown}{more})"
