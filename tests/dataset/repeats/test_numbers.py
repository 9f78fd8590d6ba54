"""The formulas: the guide's own cases, and what must hold for any counts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorapipe_dataset.repeats.numbers import (
    Target,
    choose_repeats,
    epochs_to,
    plain_repeats,
    shares,
    target_of,
)
from lorapipe_engine.datasets.kinds import KINDS


@pytest.mark.parametrize(
    ("counts", "kind", "repeats"),
    [
        ([76, 16], "character", (3, 12)),
        ([76, 16], "concept", (3, 12)),
        ([76], "character", (5,)),
        ([100], "style", (5,)),
        ([1], "concept", (400,)),
        ([2000], "style", (1,)),
        ([500, 500], "concept", (1, 1)),
    ],
)
def test_known_cases(counts: list[int], kind: str, repeats: tuple[int, ...]) -> None:
    assert choose_repeats(counts, [1.0] * len(counts), target_of(KINDS[kind], None)) == repeats


def test_rough_roundings_are_mended() -> None:
    target = target_of(KINDS["concept"], None)
    counts = [130, 130, 3]
    plain, chosen = plain_repeats(counts, [1.0] * 3, 400), choose_repeats(counts, [1.0] * 3, target)
    assert plain == (1, 1, 44)
    assert max(shares(plain, counts)) - min(shares(plain, counts)) < 0.01
    assert chosen == plain
    # 90 pictures twice or once: 180 or 90 of an epoch, so the others follow instead.
    counts, target = [90, 40], Target(250, 200, 300)
    assert plain_repeats(counts, [1.0, 1.0], 250) == (1, 3)
    assert choose_repeats(counts, [1.0, 1.0], target) == (1, 2)


def test_totals_give_the_epochs() -> None:
    assert epochs_to(10000, 500) == 20
    assert epochs_to(4000, 420) == 10
    assert epochs_to(10, 500) == 1


def test_a_length_outside_the_range_widens_it() -> None:
    assert target_of(KINDS["style"], 1000) == Target(1000, 400, 1000)
    assert target_of(KINDS["style"], 50) == Target(50, 50, 600)


@given(
    st.lists(st.tuples(st.integers(1, 3000), st.floats(0.1, 10)), min_size=1, max_size=12),
    st.integers(1, 2000),
)
def test_any_set_gets_repeats(rows: list[tuple[int, float]], length: int) -> None:
    counts, weights = [count for count, _ in rows], [weight for _, weight in rows]
    chosen = choose_repeats(counts, weights, Target(length, max(1, length - 40), length + 40))
    assert len(chosen) == len(rows)
    assert min(chosen) >= 1
    assert sum(shares(chosen, counts)) == pytest.approx(1)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.integers(50, 800))
def test_refining_is_never_worse(counts: list[int], length: int) -> None:
    def cost(vector: tuple[int, ...]) -> float:
        wish = 1 / len(counts)
        whole = sum(r * n for r, n in zip(vector, counts, strict=True))
        off = sum((part - wish) ** 2 for part in shares(vector, counts))
        return off + 0.1 * (whole / length - 1) ** 2

    weights = [1.0] * len(counts)
    chosen = choose_repeats(counts, weights, Target(length, 40, 900))
    assert cost(chosen) <= cost(plain_repeats(counts, weights, length)) + 1e-12
