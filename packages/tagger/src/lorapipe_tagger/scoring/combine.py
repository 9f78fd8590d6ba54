"""Several models' opinions made into one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lorapipe_tagger.models.labels import Labels
from lorapipe_tagger.scoring.select import Mask, Rules, Selection, Selector, spelling
from lorapipe_tagger.scoring.session import Scores
from lorapipe_tagger.settings import How

WAYS: tuple[How, ...] = ("mean", "max", "vote", "union", "intersection")


class Consensus:
    """Selects tags from the scores of one or several models.

    A tag's score is the mean (for ``max`` and ``union`` the highest) among the models that know the tag. ``mean`` and
    ``max`` put that against the mean of the models' thresholds; the others count the models whose own threshold
    it reached: any (``union``), more than half (``vote``), or all (``intersection``) of those that know it.
    """

    def __init__(self, labels: Sequence[Labels], rules: Sequence[Rules], how: How) -> None:
        self._how = how
        self._selectors = [Selector(one, rule) for one, rule in zip(labels, rules, strict=True)]
        self.labels, self._rows = unite(labels)
        self.outputs = sum(len(one) for one in labels)  # of all models together
        self._known = np.zeros(len(self.labels), dtype=np.float32)
        for rows in self._rows:
            self._known[rows] += 1
        if len(labels) == 1:
            self._whole = self._selectors[0]
        else:
            self._whole = Selector(self.labels, _mean_rules(rules))

    def select(self, scores: Sequence[Scores]) -> Selection:
        """The tags of a picture, given each model's scores."""
        together, passed = self.judge(scores)
        return self._whole.select(together, passed)

    def limits(self, scores: Sequence[Scores]) -> Scores:
        """The threshold (L,) of each tag for a picture, where the models decide by one score (``mean``, ``max``)."""
        return self._whole.limits_of(self.together(scores))

    @property
    def excluded(self) -> Mask:
        """Which tags (L,) the patterns leave out."""
        return self._whole.excluded

    def together(self, scores: Sequence[Scores]) -> Scores:
        """One score (L,) for each tag."""
        return scores[0] if len(scores) == 1 else self._combine(scores)

    def judge(self, scores: Sequence[Scores]) -> tuple[Scores, Mask]:
        """One score for each tag, and which tags pass."""
        together = self.together(scores)
        if len(scores) == 1 or self._how in ("mean", "max"):
            return together, self._whole.passed(together)
        votes = self._votes(scores)
        if self._how == "union":
            passed = votes > 0
        elif self._how == "vote":
            passed = votes * 2 > self._known
        else:
            passed = votes == self._known
        return together, passed

    def split(self, scores: Sequence[Scores]) -> Mask:
        """Tags (L,) that some of the models that know them take, and some do not."""
        votes = self._votes(scores)
        mask: Mask = (votes > 0) & (votes < self._known)
        return mask

    def _votes(self, scores: Sequence[Scores]) -> Scores:
        votes = np.zeros(len(self.labels), dtype=np.float32)
        for rows, selector, one in zip(self._rows, self._selectors, scores, strict=True):
            votes[rows] += selector.passed(one)
        return votes

    def _combine(self, scores: Sequence[Scores]) -> Scores:
        total = np.zeros(len(self.labels), dtype=np.float32)
        if self._how in ("max", "union"):
            for rows, one in zip(self._rows, scores, strict=True):
                total[rows] = np.maximum(total[rows], one)
            return total
        for rows, one in zip(self._rows, scores, strict=True):
            total[rows] += one
        mean: Scores = total / self._known
        return mean


def unite(labels: Sequence[Labels]) -> tuple[Labels, list[NDArray[np.int64]]]:
    """All tags of several lists, the first list's first; and for each list its rows among them."""
    if len(labels) == 1:
        return labels[0], [np.arange(len(labels[0]))]
    names: list[str] = []
    categories: list[str] = []
    places: dict[tuple[str, str], int] = {}
    rows = []
    for one in labels:
        own_places = []
        for name, category in zip(one.names, one.categories, strict=True):
            key = (spelling(name), category)
            if key not in places:
                places[key] = len(names)
                names.append(name)
                categories.append(category)
            own_places.append(places[key])
        rows.append(np.asarray(own_places, dtype=np.int64))
    series = {name: known for one in reversed(labels) for name, known in one.series.items()}
    return Labels(names, categories, series), rows


def _mean_rules(rules: Sequence[Rules]) -> Rules:
    categories = {category for rule in rules for category in rule.thresholds}
    means = {
        category: sum(known) / len(known)
        for category in categories
        if (known := [rule.thresholds[category] for rule in rules if category in rule.thresholds])
    }
    return Rules(
        thresholds=means, own=rules[0].own, mcut=rules[0].mcut, exclude=rules[0].exclude, keep=rules[0].keep
    )
