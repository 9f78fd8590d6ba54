"""Leading singular values and vectors, against LAPACK's, on spectra that are easy and hard for the method."""

from __future__ import annotations

import numpy as np
import pytest

from lorapipe_engine.files.dtypes import Array
from lorapipe_engine.networks import leading as module
from lorapipe_engine.networks.leading import TOLERANCE, Choose, Leading, leading

SHAPES = [(320, 320), (200, 900), (900, 200), (64, 500), (7, 5)]


def spectrum_of(shape: tuple[int, int], singular: Array, seed: int = 0) -> Array:
    """A matrix of these singular values and random vectors."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((n, singular.size)))[0] for n in shape)
    return (left * singular) @ right.T


def fixed(rank: int) -> Choose:
    return lambda singular, _norm: (min(rank, singular.size), singular.size >= rank)


def above(threshold: float) -> Choose:
    return lambda singular, _norm: (
        int(np.count_nonzero(singular > threshold)),
        bool(np.any(singular <= threshold)),
    )


def error_of(found: Leading, matrix: Array) -> float:
    up, down = found.truncate(found.rank)
    return float(np.linalg.norm(matrix - up.astype(np.float64) @ down.astype(np.float64)))


@pytest.mark.table
@pytest.mark.parametrize("kind", ["noise and signal", "flat", "power law", "steps", "noise alone"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_error_is_the_stated_one_and_near_the_optimum(shape: tuple[int, int], kind: str, dtype: type) -> None:
    size = min(shape)
    index = np.arange(size)
    noise = np.random.default_rng(1).standard_normal(shape) * 0.01
    matrix = {
        "noise and signal": noise + spectrum_of(shape, np.geomspace(50, 1, min(24, size))),
        "flat": spectrum_of(shape, np.ones(size)),
        "power law": spectrum_of(shape, (1.0 + index) ** -0.5),
        "steps": spectrum_of(shape, np.where(index < 40, 1.0, 0.9)),
        "noise alone": noise,
    }[kind].astype(dtype)
    found = leading(matrix, fixed(32))
    exact = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    best = float(np.linalg.norm(exact[32:]))
    error = error_of(found, matrix.astype(np.float64))
    assert found.rank == min(32, size)
    assert found.dropped(found.rank) == pytest.approx(error, rel=1e-4, abs=1e-5 * exact[0])
    assert found.norm() == pytest.approx(float(np.linalg.norm(exact)), rel=1e-5)
    if best:
        assert error <= TOLERANCE * best * (1 + 1e-5)
        assert error <= found.proved * best * (1 + 1e-4)


def test_rank_above_a_threshold_is_exact() -> None:
    rng = np.random.default_rng(2)
    for count in (0, 1, 24, 60):
        matrix = rng.standard_normal((400, 300)).astype(np.float32) * 0.01
        floor = 0.01 * (np.sqrt(400) + np.sqrt(300))
        matrix += spectrum_of((400, 300), np.geomspace(20, 3, count) * floor, seed=count).astype(np.float32)
        found = leading(matrix, above(1.05 * floor), threshold=1.05 * floor)
        exact = np.linalg.svd(matrix, compute_uv=False)
        assert found.rank == np.count_nonzero(exact > 1.05 * floor) == count


def test_values_just_below_a_threshold_are_not_counted() -> None:
    singular = np.concatenate([np.full(10, 1.0), np.full(200, 0.97)])
    found = leading(spectrum_of((300, 250), singular), above(0.985), threshold=0.985)
    assert found.rank == 10


def test_a_failed_proof_ends_in_the_whole_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_is_positive", lambda _matrix: False)
    matrix = np.random.default_rng(3).standard_normal((300, 250))
    found = leading(matrix, fixed(20))
    exact = np.linalg.svd(matrix, compute_uv=False)
    assert found.proved == 1.0
    assert np.allclose(found.singular, exact)
    assert error_of(found, matrix) == pytest.approx(float(np.linalg.norm(exact[20:])))


def test_a_block_without_the_leading_vectors_proves_nothing() -> None:
    """What the proof is for: the largest value hidden from the block that the values were taken from."""
    matrix = spectrum_of((300, 250), np.concatenate([[100.0], np.linspace(2.0, 0.1, 200)]))
    right = np.linalg.svd(matrix)[2]
    found, gram = module._project(matrix, right[1:45].T)
    assert module._prove(found, gram, 32) == np.inf
    assert not module._none_above(found, gram, 32, 1.9)
    honest, gram = module._project(matrix, right[:44].T)
    assert module._prove(honest, gram, 32) <= TOLERANCE


@pytest.mark.parametrize("size", [5, 128, 300])
def test_positive_definite_matrices_are_told_apart(size: int) -> None:
    rng = np.random.default_rng(4)
    vectors = np.linalg.qr(rng.standard_normal((size, size)))[0]
    values = np.linspace(1.0, 2.0, size)
    assert module._is_positive((vectors * values) @ vectors.T)
    values[-1] = -0.01
    assert not module._is_positive((vectors * values) @ vectors.T)


def test_low_rank_matrices_are_found_to_rounding() -> None:
    matrix = spectrum_of((500, 400), np.geomspace(1, 1e-3, 12))
    found = leading(matrix, fixed(32))
    assert error_of(found, matrix) < 1e-12
    assert found.singular[12:].max() < 1e-12


def test_where_singular_values_go() -> None:
    matrix = spectrum_of((200, 150), np.geomspace(9, 1, 30))
    found = leading(matrix, fixed(10))
    for balance, side in (("up", 1), ("down", 0)):
        factors = found.truncate(10, balance)  # type: ignore[arg-type]
        norms = np.linalg.norm(factors[side], axis=1 if side else 0)
        assert np.allclose(norms, 1.0)
        assert np.allclose(factors.up @ factors.down, found.truncate(10).up @ found.truncate(10).down)
