"""A caption's text through all steps, until nothing changes any more.

Cleaning once is cleaning twice by construction: the steps are repeated until a round changes nothing. Options that
never come to rest (``a`` -> ``aa``) are an error of that caption, which stays as it is.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from lorapipe_dataset.clean.captions.rules import NO_FACTS, Facts, Rules
from lorapipe_dataset.clean.captions.sentences import text_steps
from lorapipe_dataset.clean.captions.steps import build_steps
from lorapipe_dataset.clean.captions.steps.step import Bench
from lorapipe_dataset.clean.captions.tags import MARK, expression, join_caption, split_caption, split_raw
from lorapipe_dataset.clean.captions.weights import weight_taker
from lorapipe_engine.errors import ConfigError, LoraError
from lorapipe_engine.pictures.captions import caption_lines

MOST_ROUNDS = 12
_CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}")


class NeverSettles(LoraError):
    """The options change a caption again and again."""


class TwoMarks(LoraError):
    """A caption has the mark that was named and the usual one."""


class Cleaner:
    """Makes captions clean by one set of rules. ``bench`` brings counts over all captions, where rules need them."""

    def __init__(self, rules: Rules, bench: Bench | None = None) -> None:
        self.rules = rules
        self.bench = bench or Bench(rules)
        self._separators = rules.separators
        self._steps = build_steps(self.bench)
        self._changes = _text_changes(self.bench)
        self._texts = text_steps(self.bench) if rules.style == "text" else None
        self._prefix = _Affixes(rules)
        self._gentle = _gentle(self.bench) if rules.if_empty else None

    def clean(self, text: str, facts: Facts = NO_FACTS) -> str:
        """The clean caption. Raises NeverSettles, and TwoMarks."""
        own = self.rules.mark
        if own == MARK or self.rules.style == "text":
            return self._fill(text, facts)
        if MARK in text:
            raise TwoMarks(f"holds {MARK} beside the mark {own}; replace the one by the other first")
        # Of another mark the one that the steps know is made, and back.
        return self._fill(text.replace(own, MARK), facts).replace(MARK, own)

    def _fill(self, text: str, facts: Facts) -> str:
        """The clean caption, or the user's caption for empty ones where no tag of it is left."""
        cleaned = self._settle(text, facts)
        if self._gentle is None or not self._is_bare(cleaned):
            return cleaned
        if self._is_bare(text) and self._without_marks(text):
            return cleaned  # it was the trigger alone before, too
        instead = self.rules.if_empty.replace(self.rules.mark, MARK)
        filled = self._settle(instead, facts)
        return self._gentle._settle(instead, facts) if self._is_bare(filled) else filled

    def _is_bare(self, text: str) -> bool:
        """Whether a caption has no tags but those that every caption gets."""
        return all(self.bench.key(tag) in self.bench.own for tag in self._without_marks(text))

    def _without_marks(self, text: str) -> list[str]:
        return [tag for tag in self._split(text) if tag != MARK]

    def _settle(self, text: str, facts: Facts) -> str:
        first = text
        for _ in range(MOST_ROUNDS):
            new = self._round(text, facts)
            if new == text:
                return new
            text = new
        raise NeverSettles(
            f"the options change this caption again and again ({_short(first)} -> {_short(text)} -> "
            f"{_short(self._round(text, facts))}); look at --replace and --regex"
        )

    def tags_of(self, text: str) -> list[str]:
        """The tags of a caption's lines, without prefix and suffix."""
        return self._split(text if self.rules.mark == MARK else text.replace(self.rules.mark, MARK))

    def _split(self, text: str) -> list[str]:
        lines = map(self._prefix.take_off, caption_lines(text))
        return [tag for line in lines for tag in split_caption(line, self._separators)]

    def _round(self, text: str, facts: Facts) -> str:
        lines = caption_lines(text)
        if self.rules.lines == "first":
            lines = lines[:1]
        elif self.rules.lines == "join" and len(lines) > 1:
            mark = " " if self.rules.style == "text" else self.rules.join
            lines = [mark.join(lines)]
        cleaned = (self._line(line, facts) for line in lines or [""])
        return "\n".join(line for line in cleaned if line)

    def _line(self, line: str, facts: Facts) -> str:
        line = self._prefix.take_off(line)
        for change in self._changes:
            line = change(line)
        if self._texts is not None:
            for change in self._texts:
                line = change(line)
            return self._prefix.put_on(line)
        tags = split_raw(line, self._separators)
        for step in self._steps:
            tags = step(tags, facts)
        if tags.count(MARK) == len(tags):
            tags = []  # marks with nothing between them
        return self._prefix.put_on(join_caption(tags, self.rules.join))


def _gentle(bench: Bench) -> Cleaner:
    """A cleaner for the caption of empty ones: it takes no tags out by name and replaces none, so it leaves some."""
    rules = replace(
        bench.rules,
        if_empty="",
        drop=(),
        only=(),
        drop_categories=(),
        only_categories=(),
        aliases={},
        replace={},
        regexes=(),
        phrases=(),
        algebra=None,
        rating="keep" if bench.rules.rating == "drop" else bench.rules.rating,
    )
    return Cleaner(rules, Bench(rules, bench.counts, bench.captions))


def counted(rules: Rules, captions: Iterable[tuple[str, Facts]]) -> Cleaner:
    """A cleaner that knows how often each tag stands in the clean captions (without the steps that need to know)."""
    plain = Cleaner(replace(rules, order="keep", strip_invariant=None))
    counts: Counter[str] = Counter()
    total = 0
    for text, facts in captions:
        total += 1
        counts.update(set(map(plain.bench.key, plain.tags_of(plain.clean(text, facts)))))
    return Cleaner(rules, Bench(rules, counts, total))


# -------------------------------------------------------------------------------- the text as a whole


class _Affixes:
    """Text in front of and behind every caption. It is taken off first, so the steps never see it."""

    def __init__(self, rules: Rules) -> None:
        self._front, self._back = rules.prefix.lstrip(), rules.suffix.rstrip()

    def take_off(self, line: str) -> str:
        front, back = self._front, self._back
        # Of an empty caption they stand alone, and bare of the spaces at the ends.
        if (front or back) and line == (front + back).strip():
            return ""
        if front and line.startswith(front):
            line = line[len(front) :]
        return line[: -len(back)] if back and line.endswith(back) else line

    def put_on(self, line: str) -> str:
        return f"{self._front}{line}{self._back}".strip()


def _text_changes(bench: Bench) -> Sequence[Callable[[str], str]]:
    rules = bench.rules
    changes: list[Callable[[str], str]] = []
    if rules.expand_wildcards:
        changes.append(lambda line: _expand(line, rules.seed))
    if rules.strip_weights:
        of_text = rules.style == "text"
        changes.append(weight_taker(rules.separators, bench.own_tags, numbered_only=of_text))
    if rules.phrases:
        changes.append(_phrases(rules.phrases))
    return changes


def _expand(line: str, seed: int) -> str:
    """One of each ``{a|b}``, by chance, but the same for the same text and seed; ``{{`` and ``}}`` stay."""
    if "|" not in line:
        return line
    draw = random.Random(f"{seed}:{line}")
    line = line.replace("{{", "\0").replace("}}", "\1")
    while choice := _CHOICE.search(line):
        line = line[: choice.start()] + draw.choice(choice[1].split("|")) + line[choice.end() :]
    return line.replace("\0", "{{").replace("\1", "}}")


def _phrases(pairs: Sequence[tuple[str, str]]) -> Callable[[str], str]:
    compiled = [(expression(pattern), new) for pattern, new in pairs]

    def change(line: str) -> str:
        for pattern, new in compiled:
            line = pattern.sub(new, line)
        # A caption of one line stays one, and none is made of what a replacement brought in.
        return " ".join(line.split())

    return change


def check_replacements(pairs: Sequence[tuple[str, str]], option: str) -> None:
    """Raise ConfigError for an expression that is none, or a replacement with a group that it lacks."""
    for pattern, new in pairs:
        compiled = expression(pattern)
        try:
            # Compiles the template, which an empty match would not always do.
            re.compile(f"(?:{compiled.pattern})?", compiled.flags).sub(new, "")
        except (re.error, IndexError) as error:
            raise ConfigError(f"{option} {pattern!r}: {new!r} cannot stand in its place ({error})") from error


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
