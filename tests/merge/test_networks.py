"""Adding networks up: what has to work, what is refused, what the result says of itself."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.delta import Array, dense_delta
from lorapipe_engine.files.hashes import data_hash
from lorapipe_engine.files.tensorfile import Encoded, encode, open_tensors, write_tensors
from lorapipe_engine.networks.describe import describe_network

NETWORKS = Path(__file__).resolve().parents[1] / "data/networks"
FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"
TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
PROJ_IN = "lora_unet_down_blocks_0_attentions_0_proj_in"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"

Tensors = Mapping[str, Array | Encoded]
Add = Callable[..., int]


def factors(out: int, inputs: int, rank: int, seed: int, kernel: tuple[int, ...] = ()) -> tuple[Array, Array]:
    """up and down, shaped as kohya's trainer has them."""
    rng = np.random.default_rng(seed)
    up = rng.standard_normal((out, rank, *(1 for _ in kernel))).astype(np.float32)
    return up, rng.standard_normal((rank, inputs, *kernel)).astype(np.float32)


def module(name: str, up: Array, down: Array, alpha: float | None = 1.0) -> dict[str, Array]:
    tensors = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    return tensors if alpha is None else tensors | {f"{name}.alpha": np.asarray(alpha, np.float32)}


def write(path: Path, tensors: Tensors, **metadata: str) -> Path:
    write_tensors(path, tensors, metadata, force=True)
    return path


def read(path: Path) -> dict[str, Array]:
    with open_tensors(path) as file:
        return {name: file.read(name) for name in file.tensors}


def metadata_of(path: Path) -> dict[str, str]:
    with open_tensors(path) as file:
        return file.metadata


def changes(path: Path) -> dict[str, Array]:
    """The dense change of every module, (out, in·k·k)."""
    found = {}
    with open_tensors(path) as file:
        for name, described in describe_network(file).modules.items():
            tensors = {suffix: file.read(key) for suffix, key in described.keys.items()}
            weight = dense_delta(tensors, name=name).weight
            if weight is not None:
                found[name] = weight.reshape(weight.shape[0], -1)
    return found


def product(up: Array, down: Array) -> Array:
    result: Array = up.reshape(up.shape[0], -1).astype(np.float64) @ down.reshape(down.shape[0], -1)
    return result


def check(found: Array, expected: Array, tolerance: float = 1e-6) -> None:
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """a.safetensors and b.safetensors, of ranks 4 and 3 and alpha 1, and their factors of the layer to_q."""
    a, b = factors(24, 16, 4, 0), factors(24, 16, 3, 1)
    write(tmp_path / "a.safetensors", module(TO_Q, *a))
    write(tmp_path / "b.safetensors", module(TO_Q, *b))
    return a, b


# -------------------------------------------------------------------------------- sums


@pytest.mark.parametrize("mode", ["concat", "svd"])
def test_scales_of_every_kind(mode: str, add: Add, tmp_path: Path) -> None:
    """A missing alpha is the rank, alpha 0 no change, ratios may be negative, and 0 leaves a network out."""
    up, down = factors(24, 16, 4, 0)
    for name, alpha in (("missing", None), ("zero", 0.0), ("two", 2.0)):
        write(tmp_path / f"{name}.safetensors", module(TO_Q, up, down, alpha))
    write(tmp_path / "other.safetensors", module(FC1, *factors(8, 8, 2, 1)))
    options = {"mode": mode, "rank": 8 if mode == "svd" else None}
    add({"missing.safetensors": 1.0, "two.safetensors": -0.5, "other.safetensors": 0.0}, **options)
    found = changes(tmp_path / "sum.safetensors")
    assert found.keys() == {TO_Q}
    check(found[TO_Q], (1.0 - 0.5 * 2 / 4) * product(up, down))
    add({"zero.safetensors": 1.0}, **options)
    tensors = read(tmp_path / "sum.safetensors")
    assert not tensors[f"{TO_Q}.lora_up.weight"].any()
    assert tensors[f"{TO_Q}.lora_down.weight"].any()  # still shows that it was never trained


@pytest.mark.parametrize("mode", ["concat", "svd"])
def test_layers_of_one_network_only(mode: str, add: Add, tmp_path: Path) -> None:
    a, b = factors(24, 16, 4, 0), factors(12, 16, 2, 1)
    write(tmp_path / "a.safetensors", module(TO_Q, *a))
    write(tmp_path / "b.safetensors", module(FC1, *b))
    add({"a.safetensors": 0.5, "b.safetensors": 2.0}, mode=mode, rank=4 if mode == "svd" else None)
    found = changes(tmp_path / "sum.safetensors")
    check(found[TO_Q], 0.5 / 4 * product(*a))
    check(found[FC1], 2.0 / 2 * product(*b))
    with open_tensors(tmp_path / "sum.safetensors") as file:
        modules = describe_network(file).modules
    one = 6.0 if mode == "concat" else 4.0  # for both, the rest is in the factors
    assert {name: (m.rank, m.alpha) for name, m in modules.items()} == {TO_Q: (4, one), FC1: (2, one)}


@pytest.mark.parametrize(("te", "shape"), [(0, (1, 1)), (22, ())])
def test_convolutions_meet_linear_layers(te: int, shape: tuple[int, ...], add: Add, tmp_path: Path) -> None:
    """SD 1.x has 1x1 convolutions around its attention, SD 2.x linear layers; files have either for both."""
    linear, conv = factors(24, 16, 4, 0), factors(24, 16, 3, 1, (1, 1))
    text = module(f"lora_te_text_model_encoder_layers_{te}_mlp_fc1", *factors(8, 8, 2, 2))
    write(tmp_path / "a.safetensors", module(PROJ_IN, *linear) | text)
    write(tmp_path / "b.safetensors", module(PROJ_IN, *conv) | text)
    for options in ({}, {"mode": "svd", "rank": 8}):
        add({"a.safetensors": 1.0, "b.safetensors": 0.5}, **options)
        tensors = read(tmp_path / "sum.safetensors")
        assert tensors[f"{PROJ_IN}.lora_down.weight"].shape == (7, 16, *shape)
        assert tensors[f"{PROJ_IN}.lora_up.weight"].shape == (24, 7, *shape)
        expected = product(*linear) / 4 + 0.5 / 3 * product(*conv)
        check(changes(tmp_path / "sum.safetensors")[PROJ_IN], expected)


def test_a_flattened_kernel_meets_its_convolution(add: Add, tmp_path: Path) -> None:
    flat, conv = factors(24, 16 * 9, 2, 0), factors(24, 16, 3, 1, (3, 3))
    write(tmp_path / "a.safetensors", module(CONV, *flat))
    write(tmp_path / "b.safetensors", module(CONV, *conv))
    add({"a.safetensors": 1.0, "b.safetensors": 1.0})
    assert read(tmp_path / "sum.safetensors")[f"{CONV}.lora_down.weight"].shape == (5, 16, 3, 3)
    check(changes(tmp_path / "sum.safetensors")[CONV], product(*flat) / 2 + product(*conv) / 3)


def test_other_spellings_come_out_as_kohyas(add: Add, tmp_path: Path) -> None:
    """Diffusers' and PEFT's names of a layer, SDXL's first text encoder under two prefixes."""
    layers = {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (
            "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
            "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        ),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": (
            "lora_te_text_model_encoder_layers_0_mlp_fc1",
            "text_encoder.text_model.encoder.layers.0.mlp.fc1",
        ),
    }
    te2 = module("lora_te2_text_model_encoder_layers_0_mlp_fc1", *factors(8, 8, 2, 9))
    pairs = {name: factors(24, 16, 4, seed) for seed, name in enumerate(layers)}
    peft: dict[str, Array] = {}
    kohya, diffusers = dict(te2), dict(te2)
    for name, (up, down) in pairs.items():
        kohya |= module(name, up, down)
        diffusers |= module(layers[name][0], up, down)
        peft |= {f"{layers[name][1]}.lora_A.weight": down, f"{layers[name][1]}.lora_B.weight": up}
    peft["text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight"] = factors(8, 8, 2, 9)[1]
    peft["text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_B.weight"] = factors(8, 8, 2, 9)[0]
    for name, tensors in (("kohya", kohya), ("diffusers", diffusers), ("peft", peft)):
        write(tmp_path / f"{name}.safetensors", tensors)
    add({"kohya.safetensors": 1.0, "diffusers.safetensors": 1.0, "peft.safetensors": 0.5})
    found = changes(tmp_path / "sum.safetensors")
    assert found.keys() == {*layers, "lora_te2_text_model_encoder_layers_0_mlp_fc1"}
    for name, (up, down) in pairs.items():
        check(found[name], (2 / 4 + 0.5) * product(up, down))


def test_scales_that_diffusers_keeps_in_the_metadata(add: Add, tmp_path: Path) -> None:
    up, down = factors(24, 16, 4, 0)
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    facts = json.dumps({"unet.r": 4, "unet.lora_alpha": 8})
    write(tmp_path / "a.safetensors", tensors, lora_adapter_metadata=facts)
    add({"a.safetensors": 0.5})
    check(changes(tmp_path / "sum.safetensors")[TO_Q], 0.5 * 2.0 * product(up, down))
    assert "lora_adapter_metadata" not in metadata_of(tmp_path / "sum.safetensors")


@pytest.mark.parametrize(
    "algorithm",
    ["locon_tucker", "dylora", "loha", "loha_tucker", "lokr_auto", "lokr_decompose_both", "lokr_full_matrix"],
)
@pytest.mark.parametrize("mode", ["concat", "svd"])
def test_other_algorithms_become_plain_lora(algorithm: str, mode: str, add: Add, tmp_path: Path) -> None:
    kinds = {algorithm: 0.7, "lora": -0.5}
    expected: dict[str, Array] = {}
    for kind, ratio in kinds.items():
        tensors = read(NETWORKS / f"{kind}.safetensors")
        own = {name: array for name, array in tensors.items() if name.startswith("lora_unet_")}
        write(tmp_path / f"{kind}.safetensors", own)
        for name in {name.partition(".")[0] for name in own}:
            change = tensors[f"{kind}.{name.removeprefix('lora_unet_')}.delta"]
            expected[name] = expected.get(name, 0.0) + ratio * change.reshape(change.shape[0], -1)
    options = {"mode": mode, "rank": 1000 if mode == "svd" else None}
    add({f"{kind}.safetensors": ratio for kind, ratio in kinds.items()}, **options)
    found = changes(tmp_path / "sum.safetensors")
    assert found.keys() == expected.keys()
    for name, change in expected.items():
        check(found[name], change, 1e-5)
    suffixes = {name.partition(".")[2] for name in read(tmp_path / "sum.safetensors")}
    assert suffixes == {"lora_up.weight", "lora_down.weight", "alpha"}


def test_norms_and_biases_add_up(add: Add, tmp_path: Path) -> None:
    norm, bias = "lora_unet_down_blocks_0_resnets_0_norm1", np.arange(24, dtype=np.float32)
    vectors = {f"{norm}.w_norm": np.ones(8, np.float32), f"{norm}.b_norm": np.full(8, 2.0, np.float32)}
    up, down = factors(24, 16, 4, 0)
    write(tmp_path / "a.safetensors", module(TO_Q, up, down) | {f"{TO_Q}.diff_b": bias} | vectors)
    write(tmp_path / "b.safetensors", vectors | {f"{FC1}.diff_b": bias})
    add({"a.safetensors": 0.5, "b.safetensors": 2.0})
    found = read(tmp_path / "sum.safetensors")
    np.testing.assert_array_equal(found[f"{TO_Q}.diff_b"], 0.5 * bias)
    np.testing.assert_array_equal(found[f"{FC1}.diff_b"], 2.0 * bias)
    np.testing.assert_array_equal(found[f"{norm}.w_norm"], np.full(8, 2.5))
    np.testing.assert_array_equal(found[f"{norm}.b_norm"], np.full(8, 5.0))
    check(changes(tmp_path / "sum.safetensors")[TO_Q], 0.5 / 4 * product(up, down))


def test_full_changes_stay_whole_or_meet_factors(add: Add, tmp_path: Path) -> None:
    diff = np.random.default_rng(0).standard_normal((24, 16)).astype(np.float32)
    up, down = factors(24, 16, 4, 1)
    write(tmp_path / "full.safetensors", {f"{TO_Q}.diff": diff, **module(FC1, *factors(8, 8, 2, 3))})
    write(tmp_path / "lora.safetensors", module(TO_Q, up, down))
    add({"full.safetensors": 0.5})
    np.testing.assert_array_equal(read(tmp_path / "sum.safetensors")[f"{TO_Q}.diff"], 0.5 * diff)
    for options in ({}, {"mode": "svd", "rank": 16}):
        add({"full.safetensors": 0.5, "lora.safetensors": 1.0}, **options)
        found = changes(tmp_path / "sum.safetensors")[TO_Q]
        check(found, 0.5 * diff + product(up, down) / 4)


def test_sizes_apart_by_magnitudes_survive_fp16(add: Add, tmp_path: Path) -> None:
    """A trained up is small beside its down; halves hold both only if they are brought together."""
    up, down = factors(24, 16, 4, 0)
    write(tmp_path / "a.safetensors", module(TO_Q, up * np.float32(1e-6), down * np.float32(1e3)))
    add({"a.safetensors": 1.0}, save_precision="fp16")
    check(changes(tmp_path / "sum.safetensors")[TO_Q], 1e-3 / 4 * product(up, down), 1e-3)


# -------------------------------------------------------------------------------- ranks


def test_convolutions_have_their_own_rank(add: Add, tmp_path: Path) -> None:
    tensors = {
        **module(TO_Q, *factors(24, 16, 8, 0)),
        **module(CONV, *factors(24, 8, 8, 1, (3, 3))),
        **module(PROJ_IN, *factors(24, 16, 8, 2, (1, 1))),
    }
    write(tmp_path / "a.safetensors", tensors)
    add({"a.safetensors": 1.0}, mode="svd", rank=5, conv_rank=2)
    with open_tensors(tmp_path / "sum.safetensors") as file:
        ranks = {name: m.rank for name, m in describe_network(file).modules.items()}
    assert ranks == {TO_Q: 5, CONV: 2, PROJ_IN: 5}
    metadata = metadata_of(tmp_path / "sum.safetensors")
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("5", "5")
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "5"}


@pytest.mark.parametrize(
    ("method", "param", "more", "rank"),
    [("sv_ratio", 4.5, False, 3), ("sv_ratio", 4.5, True, 4), ("sv_fro", 0.995, False, 4)],
)
def test_ranks_by_a_rule(method: str, param: float, more: bool, rank: int, add: Add, tmp_path: Path) -> None:
    """Singular values 1, 1/2, 1/4, ...; and tiny ratios do not make a module dead."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((size, 8)))[0] for size in (24, 16))
    up = (left * 0.5 ** np.arange(8)).astype(np.float32)
    write(tmp_path / "a.safetensors", module(TO_Q, up, right.T.astype(np.float32), 8.0))
    options = {
        "mode": "svd",
        "rank": 16,
        "dynamic_method": method,
        "dynamic_param": param,
        "one_more": more,
    }
    add({"a.safetensors": 1e-7}, **options)
    assert read(tmp_path / "sum.safetensors")[f"{TO_Q}.lora_down.weight"].shape[0] == rank


def test_no_more_ranks_than_there_are(add: Add, pair: Any, tmp_path: Path) -> None:
    """A network added to itself has the rank of one."""
    del pair
    write(tmp_path / "copy.safetensors", read(tmp_path / "a.safetensors"))
    add({"a.safetensors": 1.0, "copy.safetensors": 0.5}, mode="svd", rank=32)
    assert read(tmp_path / "sum.safetensors")[f"{TO_Q}.lora_down.weight"].shape[0] == 4


def test_more_ranks_than_rows(add: Add, tmp_path: Path) -> None:
    a, b = factors(6, 16, 6, 0), factors(6, 16, 6, 1)
    write(tmp_path / "a.safetensors", module(TO_Q, *a, 6.0))
    write(tmp_path / "b.safetensors", module(TO_Q, *b, 6.0))
    add({"a.safetensors": 1.0, "b.safetensors": 1.0}, mode="svd", rank=100)
    assert read(tmp_path / "sum.safetensors")[f"{TO_Q}.lora_down.weight"].shape[0] == 6
    check(changes(tmp_path / "sum.safetensors")[TO_Q], product(*a) + product(*b))


@pytest.mark.parametrize("size", [7000, 12000, 30000])
def test_a_target_size_is_kept(size: int, add: Add, tmp_path: Path) -> None:
    tensors = module(TO_Q, *factors(96, 64, 16, 0)) | module(FC1, *factors(64, 64, 16, 1))
    write(tmp_path / "a.safetensors", tensors)
    add({"a.safetensors": 1.0}, mode="svd", target_size=str(size))
    found = (tmp_path / "sum.safetensors").stat().st_size
    assert 0.85 * min(size, 21_000) <= found <= size


def test_a_seed_shuffles_ranks_and_nothing_else(add: Add, pair: Any, tmp_path: Path) -> None:
    del pair
    both = {"a.safetensors": 1.0, "b.safetensors": 1.0}
    add(both, "plain.safetensors")
    add(both, "one.safetensors", shuffle=1)
    add(both, "again.safetensors", shuffle=1)
    plain, one, again = (read(tmp_path / f"{name}.safetensors") for name in ("plain", "one", "again"))
    key = f"{TO_Q}.lora_down.weight"
    assert not np.array_equal(one[key], plain[key])
    np.testing.assert_array_equal(one[key], again[key])
    np.testing.assert_array_equal(np.sort(one[key], axis=0), np.sort(plain[key], axis=0))
    check(changes(tmp_path / "one.safetensors")[TO_Q], changes(tmp_path / "plain.safetensors")[TO_Q])


# -------------------------------------------------------------------------------- what the file says


def test_metadata_tell_what_was_added(
    add: Add, pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del pair
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for name, tags in (("a", {"1girl": 3, "hat": 1}), ("b", {"1girl": 2})):
        facts = {"ss_clip_skip": "2", "ss_seed": name, "ss_network_dim": "4", "ss_network_module": "x"}
        tensors = read(tmp_path / f"{name}.safetensors")
        write(tmp_path / f"{name}.safetensors", tensors, ss_tag_frequency=json.dumps({"10_x": tags}), **facts)
    add({"a.safetensors": 0.7, "b.safetensors": 0.5})
    found = metadata_of(tmp_path / "sum.safetensors")
    assert found["ss_clip_skip"] == "2"
    assert "ss_seed" not in found
    assert json.loads(found["ss_tag_frequency"]) == {"10_x": {"1girl": 5, "hat": 1}}
    assert found["ss_network_module"] == "networks.lora"
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("7", "7")
    assert found["ss_training_comment"] == "merged (concat): 0.7 x a + 0.5 x b"
    assert found["ss_base_model_version"] == "sd_v1"
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert found["modelspec.merged_from"] == "a.safetensors, b.safetensors"
    assert found["modelspec.date"] == "2023-11-14T22:13:20+00:00"
    assert found["sshs_model_hash"] == data_hash(tmp_path / "sum.safetensors")
    recipe = json.loads(found["lora_merge.recipe"])
    digest = hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    assert recipe["networks"][0] == {"file": "a.safetensors", "sha256": digest, "ratio": 0.7}
    assert (recipe["mode"], recipe["method"], recipe["precision"]) == ("networks", "concat", "fp32")


@pytest.mark.parametrize("mode", ["concat", "svd"])
def test_same_inputs_same_bytes(mode: str, add: Add, pair: Any, tmp_path: Path) -> None:
    del pair
    for _ in range(2):
        add({"a.safetensors": 1.0, "b.safetensors": 0.3}, mode=mode, rank=3 if mode == "svd" else None)
        data = (tmp_path / "sum.safetensors").read_bytes()
        (tmp_path / "sum.safetensors").rename(tmp_path / "first.safetensors")
    assert data == (tmp_path / "first.safetensors").read_bytes()


def test_no_metadata(add: Add, pair: Any, tmp_path: Path) -> None:
    del pair
    add({"a.safetensors": 1.0}, no_metadata=True)
    assert metadata_of(tmp_path / "sum.safetensors") == {}


@pytest.mark.parametrize(
    ("types", "result"),
    [(("F16", "F16"), "F16"), (("BF16", "BF16"), "BF16"), (("F16", "BF16"), "F16"), (("F32", "F16"), "F32")],
)
def test_keep_is_the_wider_type(types: tuple[str, str], result: str, add: Add, tmp_path: Path) -> None:
    for name, dtype in zip("ab", types, strict=True):
        tensors = {key: encode(array, dtype) for key, array in module(TO_Q, *factors(24, 16, 4, 0)).items()}
        write(tmp_path / f"{name}.safetensors", tensors)
    add({"a.safetensors": 1.0, "b.safetensors": 1.0}, save_precision="keep")
    with open_tensors(tmp_path / "sum.safetensors") as file:
        assert file.tensors[f"{TO_Q}.lora_up.weight"].dtype == result
        assert file.tensors[f"{TO_Q}.alpha"].dtype == "F32"


# -------------------------------------------------------------------------------- streams and reports


def test_streams(
    add: Add,
    pair: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    del pair
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    add({"a.safetensors": 0.5, "b.safetensors": 1.0}, no_metadata=True)
    capfdbinary.readouterr()
    stdin = io.TextIOWrapper(io.BytesIO((tmp_path / "a.safetensors").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    add({"-": 0.5, "b.safetensors": 1.0}, "-", no_metadata=True)
    assert capfdbinary.readouterr().out == (tmp_path / "sum.safetensors").read_bytes()


def test_a_dry_run_reports_and_writes_nothing(
    add: Add, pair: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del pair
    options = {"mode": "svd", "rank": 2, "dry_run": True, "as_json": True}
    assert add({"a.safetensors": 1.0, "b.safetensors": 1.0}, **options) == 0
    assert not (tmp_path / "sum.safetensors").exists()
    report = json.loads(capsys.readouterr().out)
    assert report["path"] is None
    assert (report["mode"], report["family"], report["modules"], report["shared"]) == ("svd", "sd1", 1, 1)
    assert report["ranks"][0]["rank"] == {"before": 7, "after": 2}
    assert 0.1 < report["error"]["truncation"] < 1
    assert report["error"]["cast"] < 1e-6
