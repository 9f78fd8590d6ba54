"""How far apart the changes of two modules are, through their factors where they have them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.delta.base import Module, flat
from lorapipe_engine.delta.full import bias_change
from lorapipe_engine.delta.registry import dense_delta, known_rule, needs_base

Array = NDArray[Any]
Pair = tuple[Array, Array]  # up (o, r) with the scale in it, down (r, n)
Figures = tuple[float, float, float, float]  # ‖A‖, ‖B‖, ‖A - B‖, ⟨A, B⟩


def changes_apart(
    one: Mapping[str, Array], two: Mapping[str, Array], name: str = ""
) -> dict[str, Any] | None:
    """Norms of two modules' changes and of their difference, its size relative to the first, and the cosine.

    ``one`` and ``two`` are tensors by suffix. A change is that of the weight and of the bias together. None where they
    cannot be compared: the changes depend on the base, are not finite, or have other sizes.
    """
    if needs_base(one.keys()) or needs_base(two.keys()):
        return None
    if not all(np.isfinite(tensor).all() for row in (one, two) for tensor in row.values()):
        return None
    pairs = [_factors(name, row) for row in (one, two)]
    if pairs[0] is not None and pairs[1] is not None:
        weights = _by_factors(pairs[0], pairs[1])
    else:
        weights = _by_arrays(dense_delta(one, name=name).weight, dense_delta(two, name=name).weight)
    biases = _by_arrays(*(bias_change(Module(name=name, tensors=row), 1.0) for row in (one, two)))
    if weights is None or biases is None:
        return None
    norm_a, norm_b, apart = (math.hypot(weights[i], biases[i]) for i in range(3))
    return _record(norm_a, norm_b, apart, weights[3] + biases[3])


def _factors(name: str, tensors: Mapping[str, Array]) -> Pair | None:
    rule = known_rule(tensors.keys())
    if rule is None or rule.factors is None:
        return None
    up, down, scale = rule.factors(Module(name=name, tensors=tensors))
    return up * scale, flat(down)


def _by_factors(one: Pair, two: Pair) -> Figures | None:
    """By QR: the small cores hold all that norms and products need."""
    (up_a, down_a), (up_b, down_b) = one, two
    if up_a.shape[0] != up_b.shape[0] or down_a.shape[1] != down_b.shape[1]:
        return None
    left: Array = np.asarray(np.linalg.qr(np.concatenate([up_a, up_b], axis=1), mode="r"))
    right: Array = np.asarray(np.linalg.qr(np.concatenate([down_a, down_b], axis=0).T, mode="r"))
    rank = up_a.shape[1]
    core_a = left[:, :rank] @ right[:, :rank].T
    core_b = left[:, rank:] @ right[:, rank:].T
    return _by_arrays(core_a, core_b)


def _by_arrays(a: Array | None, b: Array | None) -> Figures | None:
    """Arrays that are not there are zeros; None for other sizes."""
    if a is None and b is None:
        return 0.0, 0.0, 0.0, 0.0
    a, b = np.zeros_like(b) if a is None else a, np.zeros_like(a) if b is None else b
    if a.size != b.size:
        return None
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    norms = [float(np.linalg.norm(row)) for row in (flat_a, flat_b, flat_a - flat_b)]
    return norms[0], norms[1], norms[2], float(np.dot(flat_a, flat_b))


def _record(norm_a: float, norm_b: float, apart: float, product: float) -> dict[str, Any]:
    cosine = product / (norm_a * norm_b) if norm_a and norm_b else None
    return {
        "norms": [norm_a, norm_b],
        "apart": apart,
        "relative": apart / norm_a if norm_a else (0.0 if not apart else None),
        "cosine": cosine if cosine is None or math.isfinite(cosine) else None,
    }
