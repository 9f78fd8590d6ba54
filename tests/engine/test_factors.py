"""Low-rank algebra against dense linear algebra."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorapipe_engine.networks.factors import (
    Array,
    Factors,
    dense_spectrum,
    hadamard_factors,
    kron_spectrum,
    product_norm,
    rounding_norm,
    spectrum,
    stack,
)

SIZES = st.integers(1, 24)


def random_factors(seed: int, o: int, n: int, r: int) -> Factors:
    rng = np.random.default_rng(seed)
    return Factors(rng.standard_normal((o, r)), rng.standard_normal((r, n)))


def dense(factors: Factors) -> Array:
    result: Array = factors.up.astype(np.float64) @ factors.down.astype(np.float64)
    return result


@given(seed=st.integers(0, 2**31), o=SIZES, n=SIZES, r=SIZES)
@settings(deadline=None)
def test_spectrum_is_that_of_the_dense_product(seed: int, o: int, n: int, r: int) -> None:
    factors = random_factors(seed, o, n, r)
    found = spectrum(*factors).singular
    expected = np.linalg.svd(dense(factors), compute_uv=False)
    assert len(found) == min(o, n, r)
    assert np.allclose(found, expected[: len(found)], atol=1e-12 * expected[0])
    assert np.all(found[:-1] >= found[1:])


@given(seed=st.integers(0, 2**31), o=SIZES, n=SIZES, r=SIZES, balance=st.sampled_from(["sqrt", "up", "down"]))
@settings(deadline=None)
def test_full_rank_reproduces_the_change(seed: int, o: int, n: int, r: int, balance: str) -> None:
    factors = random_factors(seed, o, n, r)
    found = spectrum(*factors)
    rebuilt = found.truncate(len(found.singular), balance)  # type: ignore[arg-type]
    assert np.allclose(dense(rebuilt), dense(factors), atol=1e-11 * found.singular[0])


@given(seed=st.integers(0, 2**31), o=SIZES, n=SIZES, r=SIZES, data=st.data())
@settings(deadline=None)
def test_truncation_error_is_the_dropped_singular_values(
    seed: int, o: int, n: int, r: int, data: st.DataObject
) -> None:
    factors = random_factors(seed, o, n, r)
    found = spectrum(*factors)
    rank = data.draw(st.integers(1, len(found.singular)))
    kept = found.truncate(rank)
    assert kept.up.shape == (o, rank)
    assert kept.down.shape == (rank, n)
    error = np.linalg.norm(dense(factors) - dense(kept))
    assert error == pytest.approx(found.dropped(rank), abs=1e-11 * found.norm())


@pytest.mark.parametrize("balance", ["sqrt", "up", "down"])
def test_balance_says_where_the_values_go(balance: str) -> None:
    found = spectrum(*random_factors(3, 12, 20, 5))
    kept = found.truncate(3, balance)  # type: ignore[arg-type]
    sigma = found.singular[:3]
    half, ones = np.sqrt(sigma), np.ones(3)
    up_share, down_share = {"sqrt": (half, half), "up": (sigma, ones), "down": (ones, sigma)}[balance]
    assert np.allclose(np.linalg.norm(kept.up, axis=0), up_share)
    assert np.allclose(np.linalg.norm(kept.down, axis=1), down_share)
    assert np.allclose(kept.up.T @ kept.up, np.diag(np.square(up_share)))


def test_dead_directions_are_exact_zeros() -> None:
    up, down = random_factors(1, 10, 14, 6)
    up[:, 3:] = 0
    found = spectrum(up, down)
    assert np.all(found.singular[3:] == 0)
    kept = found.truncate(6)
    assert np.all(kept.up[:, 3:] == 0)
    assert np.allclose(dense(kept), up @ down)


def test_a_dead_module_stays_zero() -> None:
    found = spectrum(np.zeros((6, 4)), np.ones((4, 5)))
    assert np.all(found.singular == 0)
    assert np.all(dense(found.truncate(1)) == 0)


def test_parts_that_cancel_leave_no_noise() -> None:
    one = random_factors(5, 30, 40, 4)
    small = Factors(1e-3 * random_factors(6, 30, 40, 2).up, random_factors(6, 30, 40, 2).down)
    both = stack([(one, 1.0), (one, -1.0), (small, 1.0)])
    found = spectrum(*both)
    kept = found.truncate(2)
    assert np.linalg.norm(dense(kept) - dense(small)) < 1e-10 * np.linalg.norm(dense(small))
    assert found.dropped(2) < 1e-12


@given(seed=st.integers(0, 2**31), scales=st.lists(st.floats(-2, 2), min_size=1, max_size=3))
@settings(deadline=None)
def test_stacked_factors_add_up(seed: int, scales: list[float]) -> None:
    parts = [(random_factors(seed + k, 9, 13, 1 + k), scale) for k, scale in enumerate(scales)]
    expected = sum(scale * dense(factors) for factors, scale in parts)
    assert np.allclose(dense(stack(parts)), expected)


@given(seed=st.integers(0, 2**31), limit=st.integers(1, 12))
@settings(deadline=None)
def test_kronecker_spectrum(seed: int, limit: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((3, 2)), rng.standard_normal((4, 7))
    whole = np.kron(first, second)
    found = kron_spectrum(first, second, limit)
    assert np.allclose(found.singular, np.linalg.svd(whole, compute_uv=False)[:8])
    rank = min(limit, 8)
    error = np.linalg.norm(whole - dense(found.truncate(rank)))
    assert error == pytest.approx(found.dropped(rank), abs=1e-12)


def test_hadamard_product_as_factors() -> None:
    one, two = random_factors(1, 7, 9, 3), random_factors(2, 7, 9, 2)
    product = hadamard_factors(one, two)
    assert product.up.shape == (7, 6)
    assert np.allclose(dense(product), dense(one) * dense(two))


def test_dense_spectrum_is_a_thin_svd() -> None:
    matrix = np.random.default_rng(4).standard_normal((11, 6)).astype(np.float32)
    found = dense_spectrum(matrix)
    assert np.allclose(dense(found.truncate(6)), matrix, atol=1e-6)
    assert np.linalg.norm(matrix - dense(found.truncate(2))) == pytest.approx(found.dropped(2), rel=1e-6)


def test_norms_without_the_dense_matrix() -> None:
    factors = random_factors(8, 15, 21, 4)
    assert product_norm(*factors) == pytest.approx(np.linalg.norm(dense(factors)))
    rounded = Factors(factors.up.astype(np.float16), factors.down.astype(np.float16))
    expected = np.linalg.norm(dense(factors) - dense(rounded))
    assert rounding_norm(factors, rounded) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rank", [0, 5])
def test_impossible_ranks_are_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="not within 1 to 4"):
        spectrum(*random_factors(0, 6, 6, 4)).truncate(rank)


def test_shapes_that_cannot_be_multiplied_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be multiplied"):
        spectrum(np.ones((3, 2)), np.ones((3, 4)))
    with pytest.raises(ValueError, match="same outer sizes"):
        stack([(random_factors(0, 3, 4, 1), 1.0), (random_factors(0, 3, 5, 1), 1.0)])


@pytest.mark.parametrize("condition", [1e0, 1e2, 1e3, 1e4, 1e6, 1e9, 1e14])
def test_any_condition_of_a_factor_gives_the_dense_singular_values(condition: float) -> None:
    draw = np.random.default_rng(3)
    rank = 16
    spread = np.geomspace(1.0, 1.0 / condition, rank)
    up = np.linalg.qr(draw.normal(size=(400, rank)))[0] * spread
    down = draw.normal(size=(rank, 300)) * spread[::-1, None]
    up = up @ np.linalg.qr(draw.normal(size=(rank, rank)))[0]
    found = spectrum(up, down)
    dense = np.linalg.svd(up @ down, compute_uv=False)[:rank]
    np.testing.assert_allclose(found.singular, dense, rtol=0, atol=1e-11 * dense[0])
    rest = up @ down - found.truncate(rank // 2).up @ found.truncate(rank // 2).down
    assert np.linalg.norm(rest) == pytest.approx(found.dropped(rank // 2), rel=1e-6, abs=1e-12 * dense[0])
