"""Every method against the reference's results, in float64, in one piece and in several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lorapipe_engine.files.tensorfile import open_tensors
from lorapipe_merge.models.methods import METHODS, Array, thresholds_of, ties_delta

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "merge_models" / "model_methods.safetensors"
KINDS = ("conv", "lin", "vec")


@pytest.fixture(scope="module")
def golden() -> dict[str, Array]:
    with open_tensors(GOLDEN) as file:
        return {key: file.read(key) for key in file.tensors}


def merged(models: list[Array], method: str, ratio: float, size: int, **params: float) -> Array:
    """The method on whole tensors, ``size`` numbers at a time."""
    flat = [model.reshape(-1) for model in models]

    def pieces() -> Iterator[list[Array]]:
        for start in range(0, flat[0].size, size):
            yield [row[start : start + size] for row in flat]

    row = METHODS[method]
    combine = row.prepare(pieces, ratio, {**row.params, **params}, 7)
    out = [combine(rows, number * size) for number, rows in enumerate(pieces())]
    result: Array = np.concatenate(out).reshape(models[0].shape)
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [10**6, 5])
@pytest.mark.parametrize(
    ("method", "name", "models"),
    [
        *((m, f"{n}_{r}", w) for r in (0.0, 0.3, 0.5, 1.0) for m, n, w in (
            ("weighted-sum", "weighted_sum", "ab"),
            ("add-difference", "add_difference", "abc"),
            ("train-difference", "train_difference", "abc"),
            ("slerp", "slerp", "ab"),
        )),
        ("average", "n_average", "abd"),
        ("median", "median", "abd"),
        ("geometric-median", "geometric_median", "abd"),
    ],
)  # fmt: skip
def test_golden(kind: str, size: int, method: str, name: str, models: str, golden: dict[str, Array]) -> None:
    ratio = float(name.rsplit("_", 1)[1]) if name[-1].isdigit() else 1.0
    found = merged([golden[f"in/{kind}/{m}"] for m in models], method, ratio, size)
    wanted = golden[f"out/{kind}/{name}"]
    # The reference ends its iteration a step or two before it has converged, as the last digits of its sums decide.
    tolerance = 1e-8 if method == "geometric-median" else 1e-9
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.table
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("vote", ["count", "sum"])
def test_ties(kind: str, density: float, vote: str, golden: dict[str, Array]) -> None:
    models = [golden[f"in/{kind}/{m}"] for m in "abdc"]
    deltas = [model - models[-1] for model in models[:-1]]
    flat = [model.reshape(-1) for model in models]
    thresholds = thresholds_of(lambda: [flat], density)
    wanted = golden[f"out/{kind}/ties_delta_k{density}_{vote}"]
    assert np.abs(ties_delta(deltas, thresholds, by_count=vote == "count") - wanted).max() <= 1e-12
    found = merged(models, "ties", 1.0, 5, density=density, count=float(vote == "count")) - models[-1]
    assert np.abs(found - wanted).max() <= 1e-9


def test_slerp_of_the_same_and_of_nothing() -> None:
    a = np.arange(1.0, 7.0)
    np.testing.assert_allclose(merged([a, a], "slerp", 0.3, 4), a)
    np.testing.assert_allclose(merged([a, 0 * a], "slerp", 0.3, 4), 0.7 * a)
    np.testing.assert_allclose(merged([a, -a], "slerp", 0.25, 4), 0.5 * a)


def test_dare_keeps_the_change_on_average() -> None:
    ancestor = np.zeros(200_000)
    found = merged([ancestor + 1.0, ancestor], "dare", 1.0, 10**6, drop=0.75)
    assert set(np.unique(found)) == {0.0, 4.0}
    assert abs(found.mean() - 1.0) < 0.02
    again = merged([ancestor + 1.0, ancestor], "dare", 1.0, 10**6, drop=0.75)
    np.testing.assert_array_equal(found, again)


def test_train_difference_where_models_agree() -> None:
    a = np.ones(4)
    np.testing.assert_array_equal(merged([a, a, a], "train-difference", 1.0, 4), a)
