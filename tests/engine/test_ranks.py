"""Choosing ranks: sd-scripts' rules, their plain count, and the best use of a size budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.networks.factors import Array
from lorapipe_engine.networks.ranks import Candidate, Method, RankRule, ranks_for_size

SPECTRA = st.lists(st.floats(1e-3, 10), min_size=1, max_size=20).map(lambda v: np.sort(np.array(v))[::-1])
PARAMS: dict[Method, st.SearchStrategy[float]] = {
    "sv_ratio": st.floats(1, 50),
    "sv_fro": st.floats(0.05, 0.999),
    "sv_cumulative": st.floats(0.05, 0.999),
}


def rule(method: Method | None, param: float | None, *, rank: int = 64, more: bool = False) -> RankRule:
    return RankRule(rank=rank, conv_rank=rank, method=method, param=param, one_more=more)


@given(singular=SPECTRA, method=st.sampled_from(list(PARAMS)), data=st.data())
def test_the_count_is_the_fewest_that_suffice(singular: Array, method: Method, data: st.DataObject) -> None:
    param = data.draw(PARAMS[method])
    exact = rule(method, param).choose(singular, limit=len(singular), conv=False)
    if method == "sv_ratio":
        assert exact == max(1, sum(s > singular[0] / param for s in singular))
    else:
        power = 2 if method == "sv_fro" else 1
        wanted = param**power * np.sum(singular**power)
        assert np.sum(singular[:exact] ** power) >= wanted * (1 - 1e-9)
        assert np.sum(singular[: exact - 1] ** power) <= wanted * (1 + 1e-9)
    old = rule(method, param, more=True).choose(singular, limit=len(singular), conv=False)
    assert old == min(exact + 1, len(singular))


def test_bounds_and_limits_hold() -> None:
    flat = np.ones(40)
    both = RankRule(rank=32, conv_rank=8)
    assert both.choose(flat, limit=40, conv=False) == 32
    assert both.choose(flat, limit=40, conv=True) == 8
    assert both.choose(flat[:20], limit=20, conv=False) == 20
    assert rule("sv_fro", 1.0).choose(flat, limit=12, conv=False) == 12


@pytest.mark.parametrize("singular", [np.zeros(8), np.zeros(0)])
@pytest.mark.parametrize("method", [None, "sv_fro"])
def test_a_dead_module_keeps_one_rank(singular: Array, method: Method | None) -> None:
    assert rule(method, 0.9 if method else None).choose(singular, limit=8, conv=False) == 1


def test_small_values_are_no_dead_module() -> None:
    """The strength may be in the alpha."""
    singular = np.array([4.0, 3.0, 2.0, 1.0])
    for scale in (1.0, 1e-9):
        assert rule("sv_fro", 0.9).choose(scale * singular, limit=4, conv=False) == 2


@pytest.mark.parametrize(
    ("method", "param", "message"),
    [
        ("sv_fro", None, "--dynamic-param is missing"),
        (None, 0.9, "--dynamic-method is missing"),
        ("sv_fro", 1.2, "at most 1"),
        ("sv_cumulative", 0.0, "above 0"),
        ("sv_ratio", 0.5, "at least 1"),
        ("sv_fro", float("nan"), "above 0"),
    ],
)
def test_values_out_of_range_are_refused(method: Method | None, param: float | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rule(method, param)


def test_ranks_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        RankRule(rank=0, conv_rank=4)


@given(
    energies=st.lists(SPECTRA.map(np.square), min_size=1, max_size=3).map(lambda e: [x[:4] for x in e]),
    budget=st.integers(0, 16),
)
def test_equal_costs_get_the_best_ranks_for_the_budget(energies: list[Array], budget: int) -> None:
    candidates = [Candidate(energy=e, bytes_per_rank=1, bound=len(e)) for e in energies]
    found = ranks_for_size(candidates, budget)
    if budget < len(energies):
        assert found is None
        return
    assert found is not None
    choices = itertools.product(*(range(1, len(e) + 1) for e in energies))
    best = max(_kept(energies, ranks) for ranks in choices if sum(ranks) <= budget)
    assert sum(found) <= budget
    assert _kept(energies, found) == pytest.approx(best)


def _kept(energies: list[Array], ranks: tuple[int, ...] | list[int]) -> float:
    return float(sum(np.sum(e[:r]) for e, r in zip(energies, ranks, strict=True)))


def test_a_budget_pays_by_energy_per_byte_and_keeps_bounds() -> None:
    cheap = Candidate(energy=np.array([4.0, 1.0, 1.0]), bytes_per_rank=10, bound=2)
    dear = Candidate(energy=np.array([9.0, 2.0, 2.0]), bytes_per_rank=100, bound=3)
    assert ranks_for_size([cheap, dear], 110) == [1, 1]
    assert ranks_for_size([cheap, dear], 120) == [2, 1]
    assert ranks_for_size([cheap, dear], 10**6) == [2, 3]
