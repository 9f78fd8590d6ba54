"""Which tags a picture gets: scores against thresholds."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.pictures.tag_lists import REGEX
from lorapipe_tagger.models.labels import CHARACTER, GENERAL, RATING, Labels
from lorapipe_tagger.scoring.session import Scores

# Scores below are taken for nothing, so that cached and fresh ones select alike.
FLOOR = 0.01
MCUT_CHARACTER_FLOOR = 0.15
Mask = NDArray[np.bool_]


class Tag(NamedTuple):
    """A tag of a picture: its name with underscores, category, probability, and row in the model's list."""

    name: str
    category: str
    score: float
    row: int


class Selection(NamedTuple):
    """The tags that passed, in the model's order, and the probability of each rating."""

    tags: list[Tag]
    ratings: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """``thresholds`` by category (those not named get no tags, above 1 is off); in the categories ``own`` a tag's own
    threshold holds, where the list has one; ``mcut`` sets general and
    character ones by the largest gap between a picture's scores. ``exclude`` and ``keep`` are patterns; what ``keep``
    matches stays though ``exclude`` matches too.
    """

    thresholds: Mapping[str, float]
    own: Collection[str] = ()
    mcut: bool = False
    exclude: Sequence[str] = field(default_factory=tuple)
    keep: Sequence[str] = field(default_factory=tuple)


def check_threshold(value: float, option: str) -> None:
    """Raise ConfigError unless a threshold lies in FLOOR..2, where above 1 means off."""
    if math.isnan(value) or not FLOOR <= value <= 2:
        raise ConfigError(
            f"{option} {value:g}: a threshold lies between {FLOOR:g} and 1 (such as 0.35), or is 'off'"
        )


class Selector:
    """Thresholds and patterns, worked out for one list of labels."""

    def __init__(self, labels: Labels, rules: Rules) -> None:
        self._labels = labels
        self._rules = rules
        self._categories = {
            category: np.flatnonzero(np.asarray([name == category for name in labels.categories]))
            for category in dict.fromkeys(labels.categories)
        }
        self.excluded = np.asarray(match_any(labels.names, rules.exclude), dtype=bool)
        self.excluded &= ~np.asarray(match_any(labels.names, rules.keep), dtype=bool)
        limits = np.full(len(labels), np.inf, dtype=np.float32)
        for category, rows in self._categories.items():
            if category != RATING:
                limits[rows] = np.float32(rules.thresholds.get(category, math.inf))
        for row, own in enumerate(labels.thresholds or ()):
            if own is not None and labels.categories[row] in rules.own and labels.categories[row] != RATING:
                limits[row] = np.float32(max(own, FLOOR))
        self.limits = limits

    def limits_of(self, scores: Scores) -> Scores:
        """The threshold of each label for a picture; they are the same for all without MCut."""
        if not self._rules.mcut:
            return self.limits
        limits = self.limits.copy()
        for category in (GENERAL, CHARACTER):
            rows = self._categories.get(category)
            if rows is None or self._rules.thresholds.get(category, math.inf) > 1:
                continue
            limit = mcut(scores[rows])
            limits[rows] = max(limit, MCUT_CHARACTER_FLOOR) if category == CHARACTER else limit
        return limits

    def passed(self, scores: Scores) -> Mask:
        """Which labels (L,) reach their threshold, ratings and excluded ones left out."""
        # Both sides are float32: 0.35 as a float64 would lie below the float32 0.35.
        mask: Mask = (scores >= self.limits_of(scores)) & ~self.excluded & (scores >= FLOOR)
        return mask

    def select(self, scores: Scores, passed: Mask | None = None) -> Selection:
        """The tags of a picture with scores (L,)."""
        rows: list[int] = np.flatnonzero(self.passed(scores) if passed is None else passed).tolist()
        names, categories = self._labels.names, self._labels.categories
        tags = [Tag(names[row], categories[row], float(scores[row]), row) for row in rows]
        return Selection(tags, self.ratings(scores))

    def ratings(self, scores: Scores) -> dict[str, float]:
        """The probability of each rating; empty for models that have none."""
        rows: list[int] = self._categories.get(RATING, np.empty(0, int)).tolist()
        return {self._labels.names[row]: float(scores[row]) for row in rows}


def mcut(scores: Scores) -> float:
    """The middle of the largest gap between sorted scores: Maximum Cut Thresholding (Largeron et al. 2012)."""
    if len(scores) < 2:
        return float(scores[0]) if len(scores) else math.inf
    ordered = np.sort(scores)[::-1]
    gap = int(np.argmax(ordered[:-1] - ordered[1:]))
    return float((ordered[gap] + ordered[gap + 1]) / 2)


# -------------------------------------------------------------------------------- patterns


def spelling(name: str) -> str:
    """One form for both spellings of a tag: lower case, underscores for spaces."""
    return name.strip().replace(" ", "_").casefold()


def match_any(names: Sequence[str], patterns: Sequence[str]) -> list[bool]:
    """Which names match one of the patterns. Raises ConfigError for a pattern that is no regular expression."""
    if not patterns:
        return [False] * len(names)
    tests = [_test(pattern) for pattern in patterns]
    return [any(test(spelling(name)) for test in tests) for name in names]


def _test(pattern: str) -> Callable[[str], bool]:
    if pattern.startswith(REGEX):
        try:
            expression = re.compile(pattern.removeprefix(REGEX).strip(), re.IGNORECASE)
        except re.error as error:
            raise ConfigError(f"{pattern!r}: no regular expression ({error})") from error
        return lambda name: bool(expression.fullmatch(name) or expression.fullmatch(name.replace("_", " ")))
    wanted = spelling(pattern)
    glob = re.compile(fnmatch.translate(wanted))
    # The name itself comes first: some tags are made of a pattern's signs.
    return lambda name: name == wanted or bool(glob.match(name))
