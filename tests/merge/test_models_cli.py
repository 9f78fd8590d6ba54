"""``lora-merge --models`` on real files."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lorapipe_engine.files.dtypes import Array, encode
from lorapipe_engine.files.tensorfile import open_tensors, write_tensors

Run = Callable[..., "subprocess.CompletedProcess[str]"]
BLOCK = "model.diffusion_model."
SHAPES: dict[str, tuple[int, ...]] = {
    f"{BLOCK}input_blocks.0.0.weight": (8, 4, 3, 3),
    f"{BLOCK}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (8, 768),
    f"{BLOCK}input_blocks.3.0.op.weight": (8, 8, 3, 3),
    f"{BLOCK}middle_block.0.in_layers.2.weight": (8, 8, 3, 3),
    f"{BLOCK}output_blocks.3.0.in_layers.2.bias": (8,),
    f"{BLOCK}time_embed.0.weight": (8, 8),
    "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight": (8, 8),
    "first_stage_model.decoder.conv_in.weight": (8, 4, 3, 3),
    "first_stage_model.decoder.mid.attn_1.q.weight": (8, 8, 1, 1),
    "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
}
TEXT = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
MIDDLE = f"{BLOCK}middle_block.0.in_layers.2.weight"
FIRST = f"{BLOCK}input_blocks.0.0.weight"


def model(path: Path, seed: int, **changes: object) -> dict[str, Array]:
    """A small SD 1.x checkpoint in fp16; its tensors in float32."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {
        key: rng.standard_normal(shape).astype(np.float16) for key, shape in SHAPES.items()
    }
    tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = np.arange(5)[None]
    tensors["model_ema.diffusion_modelmiddle_block0in_layers2weight"] = rng.standard_normal(
        (8, 8, 3, 3)
    ).astype(np.float16)
    tensors["v_pred"] = np.zeros(0, np.float32)
    tensors["loss.logvar"] = np.zeros(3, np.float32)
    for key, value in changes.get("put", {}).items():  # type: ignore[attr-defined]
        tensors[key] = value
    for key in changes.get("drop", ()):  # type: ignore[attr-defined]
        del tensors[key]
    write_tensors(
        path,
        {key: encode(v, "F16") if v.dtype == np.float16 else v for key, v in tensors.items()},
        {"a": "b"},
    )
    return {
        key: value.astype(np.float32) if value.dtype == np.float16 else value
        for key, value in tensors.items()
    }


@pytest.fixture
def models(tmp_path: Path) -> list[dict[str, Array]]:
    return [model(tmp_path / f"{name}.safetensors", seed) for seed, name in enumerate("abc")]


def read(path: Path) -> dict[str, Array]:
    with open_tensors(path) as file:
        return {key: file.read(key) for key in file.tensors}


def test_weighted_sum(merge: Run, models: list[dict[str, Array]], tmp_path: Path) -> None:
    done = merge("--models", "a.safetensors", "b.safetensors", "--ratio", "0.3", "-o", "o.safetensors")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "o.safetensors\n"
    a, b = models[:2]
    out = read(tmp_path / "o.safetensors")
    assert out.keys() == a.keys()
    for key in SHAPES:
        np.testing.assert_array_equal(
            out[key].astype(np.float16),
            (np.float32(0.7) * a[key] + np.float32(0.3) * b[key]).astype(np.float16),
        )
    with open_tensors(tmp_path / "o.safetensors") as file:
        assert {info.dtype for key, info in file.tensors.items() if key in SHAPES} == {"F16"}
        recipe = json.loads(file.metadata["lora_merge.recipe"])
        assert recipe["method"] == "weighted-sum"
        assert len(recipe["models"]) == 2
        assert file.metadata["a"] == "b"
    for key in ("loss.logvar", "v_pred", "model_ema.diffusion_modelmiddle_block0in_layers2weight"):
        np.testing.assert_array_equal(out[key], a[key])


@pytest.mark.slow
def test_three_models(merge: Run, models: list[dict[str, Array]], tmp_path: Path) -> None:
    files = [f"{name}.safetensors" for name in "abc"]
    done = merge(
        "--models", *files, "--method", "add-difference", "-o", "o.safetensors", "--save-precision", "fp32"
    )
    assert done.returncode == 0, done.stderr
    a, b, c = models
    np.testing.assert_allclose(
        read(tmp_path / "o.safetensors")[TEXT], a[TEXT] + (b[TEXT] - c[TEXT]), atol=1e-6
    )
    for method in ("train-difference", "ties", "dare", "median", "geometric-median", "average"):
        done = merge("--models", *files, "--method", method, "-o", f"{method}.safetensors")
        assert done.returncode == 0, done.stderr
    refused = merge("--models", *files, "--method", "slerp", "-o", "s.safetensors")
    assert refused.returncode == 2
    assert "takes 2 models, here are 3" in refused.stderr


def test_block_values(merge: Run, models: list[dict[str, Array]], tmp_path: Path) -> None:
    words = ["--ratio", "0.5", "--blocks", "MID=1,BASE=0", "--save-precision", "fp32"]
    assert merge("--models", "a.safetensors", "b.safetensors", *words, "-o", "o.safetensors").returncode == 0
    out, (a, b, _) = read(tmp_path / "o.safetensors"), models
    np.testing.assert_array_equal(out[MIDDLE], b[MIDDLE])
    np.testing.assert_array_equal(out[TEXT], a[TEXT])
    np.testing.assert_allclose(out[FIRST], (a[FIRST] + b[FIRST]) / 2, atol=1e-6)


def test_vae(merge: Run, models: list[dict[str, Array]], tmp_path: Path) -> None:
    vae = {
        "decoder.conv_in.weight": np.full((8, 4, 3, 3), 2, np.float16),
        "decoder.mid_block.attentions.0.to_q.weight": np.full((8, 8), 3, np.float16),
        "quant_conv.weight": np.full((8, 8, 1, 1), 4, np.float16),
        "encoder.down_blocks.0.resnets.0.conv1.weight": np.zeros((8, 8, 3, 3), np.float16),
    }
    write_tensors(tmp_path / "vae.safetensors", vae)
    done = merge(
        "--models", "a.safetensors", "b.safetensors", "--vae", "vae.safetensors", "-o", "o.safetensors"
    )
    assert done.returncode == 0, done.stderr
    out = read(tmp_path / "o.safetensors")
    assert (out["first_stage_model.decoder.conv_in.weight"] == 2).all()
    assert out["first_stage_model.decoder.mid.attn_1.q.weight"].shape == (8, 8, 1, 1)
    assert (out["first_stage_model.decoder.mid.attn_1.q.weight"] == 3).all()
    refused = merge(
        "--models", "a.safetensors", "b.safetensors", "--vae", "a.safetensors", "-o", "p.safetensors"
    )
    assert refused.returncode == 0  # a checkpoint has a VAE too
    write_tensors(tmp_path / "odd.safetensors", {"x": np.zeros(3)})
    refused = merge(
        "--models", "a.safetensors", "b.safetensors", "--vae", "odd.safetensors", "-o", "q.safetensors"
    )
    assert refused.returncode == 2
    assert "not a VAE" in refused.stderr


def test_ema_and_pruning(merge: Run, models: list[dict[str, Array]], tmp_path: Path) -> None:
    a, b, _ = models
    average = "model_ema.diffusion_modelmiddle_block0in_layers2weight"
    pair = ["--models", "a.safetensors", "b.safetensors", "--save-precision", "fp32"]
    assert merge(*pair, "--ema", "use", "-o", "use.safetensors").returncode == 0
    out = read(tmp_path / "use.safetensors")
    assert average not in out
    np.testing.assert_allclose(out[MIDDLE], (a[average] + b[average]) / 2, atol=1e-6)
    assert merge(*pair, "--prune", "-o", "prune.safetensors").returncode == 0
    out = read(tmp_path / "prune.safetensors")
    assert not {average, "loss.logvar"} & set(out)
    assert "v_pred" in out


def test_inpainting_inputs(merge: Run, models: list[dict[str, Array]], tmp_path: Path) -> None:
    nine = np.arange(8 * 9 * 9, dtype=np.float16).reshape(8, 9, 3, 3)
    model(tmp_path / "inpaint.safetensors", 5, put={FIRST: nine})
    done = merge(
        "--models", "inpaint.safetensors", "b.safetensors", "-o", "o.safetensors", "--save-precision", "fp32"
    )
    assert done.returncode == 0, done.stderr
    assert "first four are merged" in done.stderr
    out = read(tmp_path / "o.safetensors")[FIRST]
    np.testing.assert_array_equal(out[:, 4:], nine[:, 4:].astype(np.float32))
    np.testing.assert_allclose(out[:, :4], (nine[:, :4] + models[1][FIRST]) / 2, atol=1e-3)


def test_old_text_names_and_missing_tensors(
    merge: Run, models: list[dict[str, Array]], tmp_path: Path
) -> None:
    old = TEXT.replace("text_model.", "", 1)
    values = np.ones((8, 8), np.float16)
    model(tmp_path / "old.safetensors", 6, put={old: values}, drop=[TEXT, MIDDLE])
    done = merge(
        "--models", "a.safetensors", "old.safetensors", "-o", "o.safetensors", "--save-precision", "fp32"
    )
    assert done.returncode == 0, done.stderr
    assert "not in every model" in done.stderr
    out = read(tmp_path / "o.safetensors")
    np.testing.assert_allclose(out[TEXT], (models[0][TEXT] + 1) / 2, atol=1e-6)
    np.testing.assert_array_equal(out[MIDDLE], models[0][MIDDLE])


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["a.safetensors", "--method", "weighted-sum"], 2, "has no use with a single model"),
        (["a.safetensors", "no.safetensors"], 2, "no such file"),
        (["a.safetensors", "b.safetensors", "--param", "density=0.5"], 2, "no such number"),
        (["a.safetensors", "b.safetensors", "--method", "ties", "--param", "density=2"], 2, "from 0 to 1"),
        (["a.safetensors", "b.safetensors", "--method", "tie"], 2, "tie"),
        (["a.safetensors", "sdxl.safetensors"], 2, "cannot be merged"),
        (["a.safetensors:0.3", "b.safetensors"], 2, "the share of the second model; say it with --ratio"),
        (
            ["a.safetensors", "b.safetensors:0.3", "--method", "average"],
            2,
            "give every model a ratio of its own",
        ),
        (
            ["a.safetensors", "b.safetensors", "--method", "average", "--blocks", "MID=1"],
            2,
            "leave out --blocks",
        ),
        (["a.safetensors", "b.safetensors", "--seed", "3"], 2, "--seed has a use only with --method dare"),
        (["a.safetensors", "wide.safetensors"], 2, "differ in"),
    ],
)
def test_bad_input(
    words: list[str], status: int, told: str, merge: Run, models: object, data: Path, tmp_path: Path
) -> None:
    (tmp_path / "sdxl.safetensors").write_bytes((data / "sdxl_base_fp16.safetensors").read_bytes())
    model(tmp_path / "wide.safetensors", 4, put={MIDDLE: np.ones((8, 9, 3, 3), np.float16)})
    done = merge("--models", *words, "-o", "o.safetensors")
    assert done.returncode == status, done.stderr
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "o.safetensors").exists()


def test_output_is_an_input(merge: Run, models: list[dict[str, Array]], tmp_path: Path) -> None:
    before = (tmp_path / "a.safetensors").read_bytes()
    refused = merge("--models", "a.safetensors", "b.safetensors", "-o", "a.safetensors")
    assert refused.returncode == 2
    assert (tmp_path / "a.safetensors").read_bytes() == before
    assert (
        merge("--models", "a.safetensors", "b.safetensors", "-o", "a.safetensors", "--force").returncode == 0
    )
