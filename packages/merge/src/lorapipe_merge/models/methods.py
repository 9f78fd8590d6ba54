"""How weights of several models become one: each method as a plan for one tensor, in one or two passes over it.

A method is given the tensors' numbers piece by piece. What it has to know of the whole tensor first (lengths, angles,
thresholds) it gathers in a first pass. Formulas: weighted sum, add and train difference of the web UIs' mergers; slerp
(Shoemake 1985); TIES (arXiv:2306.01708); DARE (arXiv:2311.03099); Weiszfeld's geometric median.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Pieces = Callable[[], Iterable[Sequence[Array]]]
Combine = Callable[[Sequence[Array], int], Array]
SMALLEST_DISTANCE = 1e-6
STEPS = 100


# Looks at a tensor (the pieces give its numbers of all models, as often as asked for), with ratio, parameters and seed,
# and tells how to combine a piece of it that starts at a given number.
Prepare = Callable[[Pieces, float, Mapping[str, float], int], Combine]


@dataclass(frozen=True)
class Method:
    """A method. ``least``, ``most``: how many models it takes; ``ancestor``: the last of them is what the others came
    from. ``params``: its numbers with their defaults. ``weighted``: whether it takes notice of the ratio.
    """

    prepare: Prepare
    least: int
    most: int | None
    ancestor: bool = False
    ratio: float = 0.5
    params: Mapping[str, float] = field(default_factory=dict)
    weighted: bool = True


# -------------------------------------------------------------------------------- number by number


def weighted_sum(models: Sequence[Array], ratio: float) -> Array:
    """(1 - m) A + m B."""
    a, b = models
    result: Array = (1 - ratio) * a + ratio * b
    return result


def add_difference(models: Sequence[Array], ratio: float) -> Array:
    """A + m (B - C)."""
    a, b, c = models
    result: Array = a + ratio * (b - c)
    return result


def train_difference(models: Sequence[Array], ratio: float) -> Array:
    """A + 1.8 m |B - A| / (|B - A| + |B - C|) (B - C)."""
    a, b, c = models
    near, far = np.abs(b - a), np.abs(b - c)
    total = near + far
    share = np.divide(near, total, out=np.zeros_like(total), where=total > 0)
    result: Array = a + ratio * (share * 1.8) * (b - c)
    return result


def average(models: Sequence[Array], _ratio: float) -> Array:
    """The mean of all."""
    result: Array = sum(models[1:], models[0]) / len(models)
    return result


def weighted_average(shares: Sequence[float]) -> Prepare:
    """Each model times its share, added up."""

    def combine(models: Sequence[Array], _ratio: float) -> Array:
        result = shares[0] * models[0]
        for share, model in zip(shares[1:], models[1:], strict=True):
            result += share * model
        return result

    return _plain(combine)


def median(models: Sequence[Array], _ratio: float) -> Array:
    """The middle value of all, number by number."""
    result: Array = np.median(np.stack(models), axis=0)
    return result


def _plain(formula: Callable[[Sequence[Array], float], Array]) -> Prepare:
    def prepare(_pieces: Pieces, ratio: float, _params: Mapping[str, float], _seed: int) -> Combine:
        return lambda models, _start: formula(models, ratio)

    return prepare


# -------------------------------------------------------------------------------- whole tensors


def prepare_slerp(pieces: Pieces, ratio: float, _params: Mapping[str, float], _seed: int) -> Combine:
    """Along the circle between the directions of A and B, at lengths in between; straight where they are parallel."""
    dot, aa, bb = 0.0, 0.0, 0.0
    for a, b in pieces():
        wide_a, wide_b = a.astype(np.float64, copy=False), b.astype(np.float64, copy=False)
        dot += float(np.dot(wide_a, wide_b))
        aa += float(np.dot(wide_a, wide_a))
        bb += float(np.dot(wide_b, wide_b))
    length_a, length_b = aa**0.5, bb**0.5
    if not length_a or not length_b:
        return lambda models, _start: weighted_sum(models, ratio)
    angle = float(np.arccos(np.clip(dot / (length_a * length_b), -1.0, 1.0)))
    if np.sin(angle) < 1e-6:
        return lambda models, _start: weighted_sum(models, ratio)
    length = (1 - ratio) * length_a + ratio * length_b
    share_a = float(np.sin((1 - ratio) * angle) / np.sin(angle) / length_a * length)
    share_b = float(np.sin(ratio * angle) / np.sin(angle) / length_b * length)
    return lambda models, _start: share_a * models[0] + share_b * models[1]


def prepare_ties(pieces: Pieces, ratio: float, params: Mapping[str, float], _seed: int) -> Combine:
    """C + m times the mean of the largest changes that agree with the elected sign."""
    thresholds = thresholds_of(pieces, params["density"])
    by_count = bool(params["count"])

    def combine(models: Sequence[Array], _start: int) -> Array:
        ancestor = models[-1]
        return ancestor + ratio * ties_delta(
            [m - ancestor for m in models[:-1]], thresholds, by_count=by_count
        )

    return combine


def ties_delta(deltas: Sequence[Array], thresholds: Sequence[float], *, by_count: bool) -> Array:
    """Changes below their threshold are dropped; the sign of each number is elected, by count or by the sum; of those
    with that sign the mean."""
    kept = np.stack([np.where(np.abs(d) >= t, d, 0) for d, t in zip(deltas, thresholds, strict=True)])
    signs = np.sign(kept)
    elected = np.sign(signs.sum(axis=0) if by_count else kept.sum(axis=0))
    agree = (signs == elected) & (signs != 0)
    result: Array = np.where(agree, kept, 0).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)
    return result


def thresholds_of(pieces: Pieces, density: float) -> list[float]:
    """For each model the magnitude from which on its changes from the last are kept, so that about the share
    ``density`` is; float32, as the reference's search has it.

    Exact and in little memory: bits of positive float32 numbers sort as the numbers do, so they are counted by their
    upper halves, and in a second pass those of the half that holds the place by their lower.
    """
    upper: list[Array] = []
    for models in pieces():
        upper = upper or [np.zeros(1 << 16, np.int64) for _ in models[:-1]]
        for counts, model in zip(upper, models, strict=False):
            counts += np.bincount(_magnitude_bits(model, models[-1]) >> 16, minlength=1 << 16)
    places = [max(int((1 - density) * int(counts.sum())), 1) - 1 for counts in upper]
    halves = [_bin_of(counts, place) for counts, place in zip(upper, places, strict=True)]
    lower = [np.zeros(1 << 16, np.int64) for _ in upper]
    for models in pieces():
        for (half, _), counts, model in zip(halves, lower, models, strict=False):
            bits = _magnitude_bits(model, models[-1])
            counts += np.bincount(bits[bits >> 16 == half] & 0xFFFF, minlength=1 << 16)
    thresholds = []
    for (half, rest), counts in zip(halves, lower, strict=True):
        number = np.array([half << 16 | _bin_of(counts, rest)[0]], np.uint32)
        thresholds.append(float(number.view(np.float32)[0]))
    return thresholds


def _magnitude_bits(model: Array, ancestor: Array) -> Array:
    magnitudes: Array = np.abs(model - ancestor).astype(np.float32, copy=False)
    return magnitudes.view(np.uint32)


def _bin_of(counts: Array, place: int) -> tuple[int, int]:
    """The bin that holds the number at ``place`` in order, and its place inside the bin."""
    ends = np.cumsum(counts)
    number = int(np.searchsorted(ends, place, side="right"))
    return number, place - int(ends[number] - counts[number])


def prepare_dare(_pieces: Pieces, ratio: float, params: Mapping[str, float], seed: int) -> Combine:
    """C + m times the mean of the changes, each number kept by chance and made larger for those dropped."""
    drop = params["drop"]

    def combine(models: Sequence[Array], start: int) -> Array:
        ancestor = models[-1]
        total = np.zeros_like(ancestor)
        for number, model in enumerate(models[:-1]):
            # A stream for every model and piece: order and threads do not matter.
            draw = np.random.default_rng([seed, number, start])
            kept = draw.random(ancestor.size, np.float32) >= drop
            total += np.where(kept, model - ancestor, 0)
        result: Array = ancestor + (ratio / (1 - drop) / (len(models) - 1)) * total
        return result

    return combine


def prepare_geometric_median(
    pieces: Pieces, _ratio: float, _params: Mapping[str, float], _seed: int
) -> Combine:
    """The point with the least sum of distances to all models, the tensor being one point."""
    gram: Array | None = None
    for models in pieces():
        # Seen from the first model, so that what they have in common costs no digits.
        rows = np.stack([model.astype(np.float64, copy=False) - models[0] for model in models])
        gram = rows @ rows.T if gram is None else gram + rows @ rows.T
    weights = median_weights(gram) if gram is not None else np.ones(1)
    return lambda models, _start: sum(
        (float(w) * m for w, m in zip(weights[1:], models[1:], strict=True)), float(weights[0]) * models[0]
    )


def median_weights(gram: Array) -> Array:
    """Weiszfeld's iteration on the weights of n points, from their products (n, n): w = 1 / distance."""
    count = len(gram)
    weights = np.full(count, 1 / count)
    total = np.inf
    for _ in range(STEPS):
        away = np.diag(gram) - 2 * gram @ weights + weights @ gram @ weights
        distances = np.sqrt(np.maximum(away, 0.0))
        if not total - distances.sum() > 0 and np.isfinite(total):
            break
        total = distances.sum()
        inverse = 1 / np.maximum(distances, SMALLEST_DISTANCE)
        weights = inverse / inverse.sum()
    return weights


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "weighted-sum": Method(_plain(weighted_sum), 2, 2),
        "add-difference": Method(_plain(add_difference), 3, 3, ancestor=True, ratio=1.0),
        "train-difference": Method(_plain(train_difference), 3, 3, ancestor=True, ratio=1.0),
        "slerp": Method(prepare_slerp, 2, 2),
        "ties": Method(
            prepare_ties,
            2,
            None,
            ancestor=True,
            ratio=1.0,
            params=MappingProxyType({"density": 0.2, "count": 0.0}),
        ),
        "dare": Method(
            prepare_dare, 2, None, ancestor=True, ratio=1.0, params=MappingProxyType({"drop": 0.3})
        ),
        "median": Method(_plain(median), 3, None, weighted=False),
        "geometric-median": Method(prepare_geometric_median, 3, None, weighted=False),
        "average": Method(_plain(average), 2, None, weighted=False),
    }
)
