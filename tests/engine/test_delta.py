"""Dense changes of every algorithm against what the reference modules applied (see tests/data/networks)."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorapipe_engine.delta import Array, dense_delta, needs_base, rules
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import open_tensors
from lorapipe_engine.networks.algorithms import ALGORITHMS

DATA = Path(__file__).parents[1] / "data"
NETWORKS = sorted((DATA / "networks").glob("*.safetensors"))


def read_all(path: Path) -> dict[str, Array]:
    with open_tensors(path) as file:
        return {name: file.read(name) for name in file.tensors}


def network_modules(tensors: dict[str, Array]) -> dict[str, dict[str, Array]]:
    modules: dict[str, dict[str, Array]] = defaultdict(dict)
    for key, tensor in tensors.items():
        if key.startswith(("lora_unet_", "oft_unet_")):
            module, suffix = key.split(".", 1)
            modules[module][suffix] = tensor
    return modules


def relative(found: Array | None, expected: Array) -> float:
    assert found is not None
    assert found.shape == expected.shape
    return float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_agrees_with_the_reference_modules(path: Path, dtype: type[np.floating[Any]]) -> None:
    tensors = read_all(path)
    tolerance = 2e-5 if "oft" in path.stem else 1e-5
    compared = 0
    for module, parts in network_modules(tensors).items():
        layer = module.split("_unet_")[1]
        weight, bias = tensors[f"base.{layer}.weight"], tensors[f"base.{layer}.bias"]
        for multiplier, ending in ((1.0, ""), (0.7, ".m0.7")):
            expected = tensors.get(f"{path.stem}.{layer}.delta{ending}")
            if expected is None:  # the references do not scale `rescale`
                assert "rescaled" in path.stem
                continue
            change = dense_delta(parts, weight, bias, multiplier, name=module, dtype=dtype)
            assert relative(change.weight, expected) <= tolerance
            expected_bias = tensors.get(f"{path.stem}.{layer}.delta_b{ending}")
            assert (change.bias is None) == (expected_bias is None)
            if expected_bias is not None:
                assert relative(change.bias, expected_bias) <= tolerance
            compared += 1
    assert compared >= 3


def lycoris_cases() -> dict[str, dict[str, dict[str, Array]]]:
    cases: dict[str, dict[str, dict[str, Array]]] = defaultdict(lambda: defaultdict(dict))
    for key, tensor in read_all(DATA / "weights_resize/lycoris_m0.7.safetensors").items():
        case, part, suffix = key.split("/")
        cases[case][part][suffix] = tensor
    return cases


def test_agrees_with_lycoris_at_another_multiplier() -> None:
    cases = lycoris_cases()
    assert len(cases) == 54
    for name, case in cases.items():
        base = case["base"]
        change = dense_delta(case["file"], base["weight"], base.get("bias"), 0.7, name=name)
        assert change.weight is not None, name
        assert relative(base["weight"] + change.weight, case["target"]["weight"]) <= 1e-5, name
        if change.bias is not None:
            assert relative(base["bias"] + change.bias, case["target"]["bias"]) <= 1e-5, name


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_says_when_the_base_is_needed(path: Path) -> None:
    depends = any(word in path.stem for word in ("dora", "oft", "ia3", "glora"))
    for module, parts in network_modules(read_all(path)).items():
        assert needs_base(parts) == depends
        if depends:
            with pytest.raises(InputError, match=f"module {module}: .*base model"):
                dense_delta(parts, name=module)
        else:
            dense_delta(parts, name=module)


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_multiplier_zero_changes_nothing(path: Path) -> None:
    tensors = read_all(path)
    for module, parts in network_modules(tensors).items():
        if "rescale" in parts:  # not scaled by the multiplier, as its readers have it
            continue
        weight = tensors[f"base.{module.split('_unet_')[1]}.weight"]
        change = dense_delta(parts, weight, multiplier=0.0, name=module).weight
        assert change is not None
        assert np.max(np.abs(change)) == 0


@pytest.mark.parametrize("path", NETWORKS, ids=lambda path: path.stem)
def test_a_missing_tensor_is_named_with_its_module(path: Path) -> None:
    tensors = read_all(path)
    optional = {"alpha", "rescale", "dora_scale", "diff_b", "b_norm", "w_norm", "diff", "lora_mid.weight"}
    optional |= {"hada_t1", "hada_t2", "lokr_t2", "on_input"}
    for module, parts in network_modules(tensors).items():
        weight = tensors[f"base.{module.split('_unet_')[1]}.weight"]
        for suffix in set(parts) - optional:
            rest = {key: value for key, value in parts.items() if key != suffix}
            with pytest.raises(InputError, match=f"module {module}: "):
                dense_delta(rest, weight, name=module)


def test_a_weight_of_another_shape_is_refused() -> None:
    for path in NETWORKS:
        for module, parts in network_modules(read_all(path)).items():
            with pytest.raises(InputError, match=f"module {module}: "):
                dense_delta(parts, np.ones((7, 5, 3, 3)), name=module)


@given(o=st.integers(1, 6), i=st.integers(1, 6), r=st.integers(1, 4), scale=st.floats(-4, 4))
def test_lora_is_alpha_over_rank_times_the_product(o: int, i: int, r: int, scale: float) -> None:
    rng = np.random.default_rng(o * 100 + i * 10 + r)
    up, down = rng.standard_normal((o, r)), rng.standard_normal((r, i))
    tensors = {"lora_up.weight": up, "lora_down.weight": down, "alpha": np.asarray(scale)}
    weight = dense_delta(tensors, multiplier=2.0).weight
    assert weight is not None
    assert np.allclose(weight, 2.0 * scale / r * up @ down)
    del tensors["alpha"]
    assert np.allclose(dense_delta(tensors).weight, up @ down)  # type: ignore[arg-type]


def test_conv_shaped_factors_fit_a_linear_base() -> None:
    rng = np.random.default_rng(0)
    up, down = rng.standard_normal((6, 2, 1, 1)), rng.standard_normal((2, 4, 1, 1))
    tensors = {"lora_up.weight": up, "lora_down.weight": down}
    change = dense_delta(tensors, np.zeros((6, 4))).weight
    assert np.allclose(change, up[:, :, 0, 0] @ down[:, :, 0, 0])  # type: ignore[arg-type]


def test_flattened_factors_take_the_shape_asked_for() -> None:
    rng = np.random.default_rng(1)
    tensors = {
        "hada_w1_a": rng.standard_normal((6, 2)),
        "hada_w1_b": rng.standard_normal((2, 36)),
        "hada_w2_a": rng.standard_normal((6, 2)),
        "hada_w2_b": rng.standard_normal((2, 36)),
    }
    plain, shaped = dense_delta(tensors).weight, dense_delta(tensors, shape=(6, 4, 3, 3)).weight
    assert plain is not None
    assert shaped is not None
    assert plain.shape == (6, 36)
    assert np.array_equal(plain.reshape(6, 4, 3, 3), shaped)


def test_early_glora_files_have_each_pair_swapped() -> None:
    rng = np.random.default_rng(2)
    new = {
        f"{name}.weight": rng.standard_normal(shape)
        for name, shape in {"a1": (5, 2), "a2": (2, 5), "b1": (7, 2), "b2": (2, 5)}.items()
    }
    old = {
        f"{name}.weight": new[f"{other}.weight"]
        for name, other in (("a1", "a2"), ("a2", "a1"), ("b1", "b2"), ("b2", "b1"))
    }
    weight = rng.standard_normal((7, 5))
    assert np.allclose(dense_delta(new, weight).weight, dense_delta(old, weight).weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"strange": np.ones(3)}, "are not those of one known algorithm: strange"),
        (
            {"diff": np.ones((2, 2)), "w_norm": np.ones(2)},
            "are not those of one known algorithm: diff, w_norm",
        ),
        ({"lora_up.weight": np.ones((4, 2)), "lora_down.weight": np.ones((3, 5))}, "has rank 2, lora_down"),
        (
            {"lora_up.weight": np.ones((4, 2)), "lora_down.weight": np.ones((2, 5)), "alpha": np.ones(2)},
            r"alpha has shape \(2,\), expected one number",
        ),
        (
            {
                "lora_up.weight": np.ones((4, 2)),
                "lora_down.weight": np.ones((2, 5)),
                "alpha": np.array(np.nan),
            },
            "alpha is nan",
        ),
        ({"lora_up.weight": np.ones(4), "lora_down.weight": np.ones((2, 5))}, "expected 2 or 4 dimensions"),
    ],
)
def test_what_cannot_be_right_is_one_line_naming_the_module(tensors: dict[str, Array], message: str) -> None:
    with pytest.raises(InputError, match=f"module lora_unet_x: .*{message}"):
        dense_delta(tensors, name="lora_unet_x")


def test_bias_changes_ride_on_any_algorithm() -> None:
    tensors = {
        "lora_up.weight": np.ones((4, 2)),
        "lora_down.weight": np.ones((2, 5)),
        "diff_b": np.arange(4.0),
    }
    change = dense_delta(tensors, multiplier=0.5)
    assert np.array_equal(change.bias, np.arange(4.0) / 2)  # type: ignore[arg-type]
    only_bias = dense_delta({"diff_b": np.ones(4)})
    assert only_bias.weight is None
    with pytest.raises(InputError, match="diff_b has shape"):
        dense_delta(tensors, bias=np.ones(5), name="x")


def test_every_algorithm_of_the_table_has_its_rule() -> None:
    assert set(rules()) == {algorithm.name for algorithm in ALGORITHMS}
