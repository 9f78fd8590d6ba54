"""lora-extract on networks of other kinds, against dense changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.delta import dense_delta, needs_base
from lorapipe_engine.files.dtypes import Array
from lorapipe_engine.files.tensorfile import open_tensors, write_tensors
from lorapipe_engine.networks.describe import describe_network

DATA = Path(__file__).parents[1] / "data"
BASE = DATA / "extract/base.safetensors"
NETWORKS = sorted((DATA / "networks").glob("*.safetensors"))
ALONE = [p for p in NETWORKS if not any(word in p.stem for word in ("oft", "ia3", "glora", "norm", "dora"))]
# Layers of the golden base: linear, 1x1 and 3x3.
LINEAR = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_2"
LINEAR_KEY = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.ff.net.2.weight"
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"
CONV_KEY = "model.diffusion_model.input_blocks.1.0.in_layers.2.weight"


def delta(path: Path, name: str) -> Array:
    with open_tensors(path) as file:
        up, down = (file.read(f"{name}.lora_{side}.weight").astype(np.float64) for side in ("up", "down"))
        alpha = float(file.read(f"{name}.alpha"))
    return up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1) * (alpha / down.shape[0])


def base_weight(key: str) -> Array:
    with open_tensors(BASE) as file:
        return file.read(key).astype(np.float64)


def rows(weight: Array) -> Array:
    return weight.reshape(weight.shape[0], -1)


@pytest.mark.parametrize("path", ALONE, ids=lambda path: path.stem)
def test_networks_without_a_base_become_lora_of_the_same_change(
    path: Path, extract: Any, tmp_path: Path
) -> None:
    with open_tensors(path) as file:
        kept = {key: file.read(key) for key in file.tensors if not key.startswith("base.")}
    source, output = tmp_path / path.name, tmp_path / "out.safetensors"
    write_tensors(source, kept)
    done = extract(source, "-o", output, "--dim", 500, "--save-precision", "float", "--verify")
    assert done.code == 0, done.err
    with open_tensors(source) as file, open_tensors(output) as new:
        before, after = describe_network(file), describe_network(new)
        assert {module.algorithm for module in after.modules.values()} == {"lora"}
        assert {module.alpha for module in after.modules.values()} == {500.0}
        for name, module in before.modules.items():
            tensors = {suffix: file.read(key) for suffix, key in module.keys.items()}
            if needs_base(module.keys) or not set(module.keys) - {"diff_b", "w_norm", "b_norm"}:
                continue
            change = dense_delta(tensors, name=name).weight
            assert change is not None
            if np.any(change):
                assert np.allclose(delta(output, name), rows(change), atol=3e-6 * np.abs(change).max())


@pytest.mark.parametrize("per", ["output", "input"])
def test_dora_becomes_lora_of_its_change_against_the_base(per: str, extract: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    tensors: dict[str, Array] = {}
    wanted: dict[str, Array] = {}
    for name, key in ((LINEAR, LINEAR_KEY), (CONV, CONV_KEY)):
        weight = base_weight(key)
        out, inputs, *kernel = weight.shape
        down = rng.standard_normal((2, inputs, *kernel)).astype(np.float32)
        up = rng.standard_normal((out, 2, *(1 for _ in kernel))).astype(np.float32)
        moved = weight + (rows(up).astype(np.float64) @ rows(down)).reshape(weight.shape) * (1.0 / 2)
        axes = tuple(range(1, weight.ndim)) if per == "output" else (0, *range(2, weight.ndim))
        norm = np.sqrt(np.sum(moved**2, axis=axes, keepdims=True))
        scale = (norm * (1 + 0.1 * rng.standard_normal(norm.shape))).astype(np.float32)
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
        tensors |= {f"{name}.alpha": np.asarray(1.0, np.float32), f"{name}.dora_scale": scale}
        wanted[name] = moved * scale.astype(np.float64) / norm - weight
    source, output = tmp_path / "dora.safetensors", tmp_path / "out.safetensors"
    write_tensors(source, tensors)
    alone = extract(source, "-o", output)
    assert (alone.code, "2 dora modules depends on the base model" in alone.err) == (2, True)
    done = extract(source, BASE, "-o", output, "--dim", 64, "--save-precision", "float", "--verify", "--json")
    found = json.loads(done.out)
    assert found["error"]["whole"] < 1e-6
    assert {row["block"] for row in found["modules"]} == {"IN01"}
    for name, change in wanted.items():
        assert np.allclose(delta(output, name), rows(change), atol=2e-6 * np.abs(change).max())
    with open_tensors(output) as file:
        assert file.metadata["ss_sd_model_name"] == "base.safetensors"
        assert file.tensors[f"{CONV}.lora_down.weight"].shape[2:] == (3, 3)
    error = json.loads(extract(source, BASE, "-n", "--dim", 2, "--json").out)["modules"]
    for row in error:
        sigma = np.linalg.svd(rows(wanted[row["module"]]), compute_uv=False)
        best = np.linalg.norm(sigma[2:]) / np.linalg.norm(sigma)
        assert row["error"]["truncation"] == pytest.approx(best, rel=1e-5)


def test_blocks_and_kernels_are_told_by_names_alone(extract: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    tensors: dict[str, Array] = {}
    for name, columns in ((LINEAR, 12), (CONV, 9 * 8), ("lora_te_text_model_encoder_layers_0_mlp_fc1", 12)):
        for which in "12":
            tensors[f"{name}.hada_w{which}_a"] = rng.standard_normal((10, 2)).astype(np.float32)
            tensors[f"{name}.hada_w{which}_b"] = rng.standard_normal((2, columns)).astype(np.float32)
    source, output = tmp_path / "loha.safetensors", tmp_path / "out.safetensors"
    write_tensors(source, tensors)
    found = json.loads(extract(source, "-o", output, "--target-size", "9kB", "--json").out)
    assert list(found["blocks"]) == ["TE1", "IN01"]
    with open_tensors(output) as file:
        assert file.tensors[f"{CONV}.lora_down.weight"].shape[1:] == (8, 3, 3)
        assert len(file.tensors[f"{LINEAR}.lora_down.weight"].shape) == 2
    assert output.stat().st_size <= 9000


def test_biases_norms_and_strangers_are_named(extract: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    source = tmp_path / "full.safetensors"
    tensors = {
        f"{LINEAR}.diff": rng.standard_normal(base_weight(LINEAR_KEY).shape),
        f"{LINEAR}.diff_b": np.ones(4),
        "lora_unet_down_blocks_0_resnets_0_norm1.w_norm": np.ones(4),
        "something.else": np.ones(3),
    }
    write_tensors(source, {key: value.astype(np.float32) for key, value in tensors.items()})
    done = extract(source, BASE, "-n", "--json")
    assert [row["module"] for row in json.loads(done.out)["modules"]] == [LINEAR]
    assert "1 module of norms or vectors" in done.err
    assert "changes of 1 bias (diff_b)" in done.err
    assert "1 tensor of no module: something.else" in done.err


@pytest.mark.slow
def test_modules_without_a_place_and_swapped_files_are_refused(extract: Any, tmp_path: Path) -> None:
    network = DATA / "merge/sdxl_lora_A.safetensors"
    output = tmp_path / "out.safetensors"
    for words, message in (
        ((network, BASE), "the network is for Stable Diffusion XL"),
        ((BASE, network), "give the network first, the base second"),
        ((network, network), f"lora-merge --networks {network}:1 {network}:-1"),
        ((network, "--dim", "signal"), "need two checkpoints"),
        ((network, "--min-diff", 0.1), "for two checkpoints"),
        ((BASE,), "give the model that it was tuned from too"),
        ((BASE, BASE, BASE), "one model too many"),
        ((), "give the tuned model and its base"),
    ):
        done = extract(*words, "-o", output)
        assert (done.code, message in done.err) == (2, True), done.err
    assert not output.exists()


def test_a_peft_adapters_config_counts(extract: Any, tmp_path: Path) -> None:
    """As a folder, as its file, with and without the base; alone without the config its strength is not known."""
    rng = np.random.default_rng(5)
    stem = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"
    out, inputs = base_weight(LINEAR_KEY).shape
    down = rng.standard_normal((2, inputs)).astype(np.float32)
    up = rng.standard_normal((out, 2)).astype(np.float32)
    folder, output = tmp_path / "adapter", tmp_path / "out.safetensors"
    folder.mkdir()
    source = folder / "adapter_model.safetensors"
    write_tensors(source, {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up})
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 16}')
    for words in ((folder,), (source,), (source, BASE)):
        done = extract(*words, "-o", output, "--save-precision", "float", "--force")
        assert done.code == 0, done.err
        assert np.allclose(delta(output, LINEAR), 8 * (up @ down), atol=1e-5)
    (folder / "adapter_config.json").unlink()
    done = extract(source, "-n")
    assert (done.code, "adapter_config.json" in done.err) == (2, True)
