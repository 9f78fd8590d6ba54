"""The steps for captions that are sentences: white space, phrases to drop, the trigger, lengths."""

from __future__ import annotations

import re
from collections.abc import Callable

from lorapipe_dataset.clean.captions.steps.normalise import tidy
from lorapipe_dataset.clean.captions.steps.step import Bench
from lorapipe_dataset.clean.captions.tags import matcher

_ENDS = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


def text_steps(bench: Bench) -> list[Callable[[str], str]]:
    """What is done to a sentence caption, in order. ``drop`` takes out whole sentences that a pattern matches."""
    rules = bench.rules
    steps: list[Callable[[str], str]] = [tidy]
    if rules.lower:
        steps.append(str.lower)
    if rules.drop:
        steps.append(_dropping(bench))
    if rules.sentences is not None:
        steps.append(lambda text: " ".join(split_sentences(text)[: rules.sentences]))
    if rules.dedupe:
        steps.append(lambda text: " ".join(dict.fromkeys(split_sentences(text))))
    if rules.trigger:
        steps.append(_triggering(rules.trigger.strip()))
    if rules.max_tokens is not None:
        steps.append(_cutting(bench))
    return steps


def split_sentences(text: str) -> list[str]:
    """A text cut after full stops, question and exclamation marks."""
    return [piece for piece in map(str.strip, _ENDS.split(text)) if piece]


def _dropping(bench: Bench) -> Callable[[str], str]:
    out = matcher(bench.rules.drop)

    def drop(text: str) -> str:
        return " ".join(
            piece
            for piece in split_sentences(text)
            if not out(piece.casefold()) and not out(bench.key(piece.rstrip(".")))
        )

    return drop


def _triggering(trigger: str) -> Callable[[str], str]:
    word = re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)
    return lambda text: text if word.search(text) else f"{trigger}, {text}" if text else trigger


def _cutting(bench: Bench) -> Callable[[str], str]:
    rules = bench.rules
    count = rules.count_tokens or len
    most = (rules.max_tokens or 0) - count(rules.prefix) - count(rules.suffix)

    def cut(text: str) -> str:
        if count(text) <= most:
            return text
        pieces = split_sentences(text)
        while len(pieces) > 1:
            pieces.pop()
            if count(" ".join(pieces)) <= most:
                return " ".join(pieces)
        words = pieces[0].split() if pieces else []
        while len(words) > 1 and count(" ".join(words)) > most:
            words.pop()
        return " ".join(words)

    return cut
