"""lora-extract on pairs of checkpoints: the golden pair, and everything that can be wrong with two files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.files.dtypes import Array, Encoded, decode
from lorapipe_engine.files.hashes import data_hash, legacy_hash
from lorapipe_engine.files.tensorfile import encode, open_tensors, write_tensors
from lorapipe_engine.networks.describe import describe_network

DATA = Path(__file__).parents[1] / "data"
TUNED, BASE = DATA / "extract/tuned.safetensors", DATA / "extract/base.safetensors"
EXPECTED = json.loads((DATA / "extract/expected.json").read_text())
MODULES = {
    name: dict(zip(EXPECTED["columns"], row, strict=True)) for name, row in EXPECTED["modules"].items()
}
Q = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
Q_KEY = f"model.diffusion_model.{Q}"
Q_NAME = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"


def tensors_of(path: Path) -> dict[str, Encoded]:
    with open_tensors(path) as file:
        return {
            key: Encoded(info.dtype, info.shape, bytes(file.raw(key))) for key, info in file.tensors.items()
        }


def arrays_of(path: Path) -> dict[str, Array]:
    with open_tensors(path) as file:
        return {key: file.read(key) for key in file.tensors}


def changed(path: Path, source: Path = TUNED, drop: tuple[str, ...] = (), **arrays: Any) -> Path:
    """A copy of a checkpoint with some tensors replaced (fp16 unless encoded) and some left out."""
    tensors: dict[str, Any] = {
        k: v for k, v in tensors_of(source).items() if not k.startswith(drop or ("\0",))
    }
    tensors.update((k, v if isinstance(v, Encoded) else encode(v, "F16")) for k, v in arrays.items())
    write_tensors(path, tensors)
    return path


def delta(path: Path, name: str) -> Array:
    """The change as a reader computes it: up · down · alpha / rank, float64."""
    with open_tensors(path) as file:
        up, down = (file.read(f"{name}.lora_{side}.weight").astype(np.float64) for side in ("up", "down"))
        alpha = float(file.read(f"{name}.alpha"))
    return up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1) * (alpha / down.shape[0])


def record(done: Any) -> dict[str, Any]:
    assert done.code == 0, done.err
    return dict(json.loads(done.out))


# -------------------------------------------------------------------------------- the golden pair


@pytest.mark.slow
def test_errors_of_the_golden_pair_are_the_optimum(extract: Any, tmp_path: Path) -> None:
    output = tmp_path / "lora.safetensors"
    words = ("--dim", 2, "--conv-dim", 2, "--save-precision", "float", "--json", "--verify")
    found = record(extract(TUNED, BASE, "-o", output, *words))
    assert found["error"]["whole"] == pytest.approx(EXPECTED["optimum_dim2_conv2"], rel=1e-6)
    assert found["verified"]["error"] == pytest.approx(EXPECTED["optimum_dim2_conv2"], rel=1e-5)
    rows = {row["module"]: row for row in found["modules"]}
    assert set(MODULES) - set(rows) == set(EXPECTED["unchanged"])
    assert found["unchanged"] == len(EXPECTED["unchanged"])
    tuned, base = arrays_of(TUNED), arrays_of(BASE)
    for name, row in rows.items():
        assert row["norm"] == pytest.approx(MODULES[name]["norm"], rel=1e-5)
        assert row["error"]["truncation"] == pytest.approx(MODULES[name]["optimal_error_rank2"], abs=1e-6)
    difference = (tuned[Q_KEY] - base[Q_KEY]).astype(np.float64)
    error = np.linalg.norm(delta(output, Q_NAME) - difference) / np.linalg.norm(difference)
    assert error == pytest.approx(MODULES[Q_NAME]["optimal_error_rank2"], abs=1e-6)


@pytest.mark.slow
def test_ranks_by_signal_are_those_above_the_noise(extract: Any, tmp_path: Path) -> None:
    output = tmp_path / "lora.safetensors"
    words = ("--dim", "signal", "--conv-dim", "signal", "--json")
    rows = {row["module"]: row for row in record(extract(TUNED, BASE, "-o", output, *words))["modules"]}
    wanted = {
        name: row["rank_above_floor"] for name, row in MODULES.items() if name not in EXPECTED["unchanged"]
    }
    assert {name: row["rank"] for name, row in rows.items()} == wanted
    with open_tensors(output) as file:
        network = describe_network(file)
    assert {name: module.rank for name, module in network.modules.items()} == wanted
    # One alpha, for loaders that take the commonest of a file for all.
    assert {module.alpha for module in network.modules.values()} == {32.0}
    assert network.metadata["ss_network_dim"] == "Dynamic"


@pytest.mark.slow
def test_what_no_lora_says_is_named(extract: Any, tmp_path: Path) -> None:
    done = extract(TUNED, BASE, "-n", "--json")
    found = {row["title"]: row for row in record(done)["not_in_the_lora"]}
    vae, bias = EXPECTED["no_lora_says"]
    assert (found["VAE tensors"]["count"], found["VAE tensors"]["largest"]) == (1, vae)
    assert (found["biases"]["count"], found["biases"]["largest"]) == (1, bias)
    assert found["layers of residual blocks and samplers"]["count"] == 80
    tuned, base = arrays_of(TUNED), arrays_of(BASE)
    assert found["biases"]["change"] == pytest.approx(np.linalg.norm(tuned[bias] - base[bias]), rel=1e-5)
    assert "--conv-dim takes them in" in done.err
    done = extract(TUNED, BASE, "-n", "--json", "--conv-dim", 4)
    assert {row["title"] for row in record(done)["not_in_the_lora"]} == {"VAE tensors", "biases"}


@pytest.mark.slow
def test_without_conv_dim_kohyas_targets_alone(extract: Any, tmp_path: Path) -> None:
    output = tmp_path / "lora.safetensors"
    assert extract(TUNED, BASE, "-o", output).code == 0
    with open_tensors(output) as file:
        network = describe_network(file)
        shapes = {key: info.shape for key, info in file.tensors.items()}
        types = {info.dtype for key, info in file.tensors.items() if key.endswith("weight")}
    assert (network.algorithm, network.family, network.metadata["ss_network_dim"]) == ("lora", "sd1", "32")
    assert not [name for name in network.modules if "resnets" in name or "samplers" in name]
    assert types == {"F16"}
    # 1x1 convolutions of SD 1.x are convolutions to every reader.
    assert len(shapes["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"]) == 4
    assert len(shapes[f"{Q_NAME}.lora_down.weight"]) == 2


@pytest.mark.slow
def test_metadata_is_what_kohyas_readers_expect(extract: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    output = tmp_path / "mina.safetensors"
    extract(TUNED, BASE, "-o", output, "--dim", 4, "--conv-dim", 2)
    with open_tensors(output) as file:
        found = file.metadata
    wanted = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4.0",
        "ss_network_args": '{"conv_dim": "2", "conv_alpha": "4.0"}',
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_sd_model_name": "base.safetensors",
        "ss_sd_model_hash": legacy_hash(BASE),
        "ss_output_name": "mina",
        "ss_training_comment": "extracted from tuned.safetensors against base.safetensors, rank 4, convolutions 2",
        "sshs_model_hash": data_hash(output),
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "mina",
        "modelspec.resolution": "512x512",
        "modelspec.date": "1970-01-02T00:00:00+00:00",
    }
    assert wanted.items() <= found.items()
    again = tmp_path / "again" / "mina.safetensors"
    again.parent.mkdir()
    extract(TUNED, BASE, "-o", again, "--dim", 4, "--conv-dim", 2)
    assert again.read_bytes() == output.read_bytes()
    extract(TUNED, BASE, "-o", output, "--dim", 4, "--no-metadata", "--force", "--v-parameterization")
    with open_tensors(output) as file:
        assert set(file.metadata) == {
            *("ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_v2", "ss_base_model_version"),
            *("sshs_model_hash", "sshs_legacy_hash"),
        }
        assert file.metadata["ss_base_model_version"] == "sd_v1_v"


@pytest.mark.slow
def test_what_the_model_predicts_is_said(extract: Any, tmp_path: Path) -> None:
    tuned, output = tmp_path / "tuned.safetensors", tmp_path / "lora.safetensors"
    write_tensors(tuned, tensors_of(TUNED), {"modelspec.prediction_type": "v"})
    done = extract(tuned, BASE, "-o", output, "--dim", 2, "--verify")
    assert done.code == 0, done.err
    assert "verified: the base with the written LoRA" in done.err
    with open_tensors(output) as file:
        assert file.metadata["modelspec.prediction_type"] == "v"
    done = extract(output, "-o", tmp_path / "again.safetensors", "--dim", 2, "--verify")
    assert "verified: the written LoRA is" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "param"), [("sv_ratio", 5.0), ("sv_fro", 0.9), ("sv_cumulative", 0.8)], ids=lambda x: str(x)
)
def test_ranks_by_a_method(method: str, param: float, extract: Any) -> None:
    rows = record(extract(TUNED, BASE, "-n", "--json", "--method", method, "--param", param))["modules"]
    tuned, base = arrays_of(TUNED), arrays_of(BASE)
    row = next(row for row in rows if row["module"] == Q_NAME)
    sigma = np.linalg.svd((tuned[Q_KEY] - base[Q_KEY]).astype(np.float64), compute_uv=False)
    wanted = {
        "sv_ratio": np.count_nonzero(sigma > sigma[0] / param),
        "sv_fro": 1 + np.searchsorted(np.sqrt(np.cumsum(sigma**2) / np.sum(sigma**2)), param),
        "sv_cumulative": 1 + np.searchsorted(np.cumsum(sigma) / np.sum(sigma), param),
    }[method]
    assert row["rank"] == wanted
    assert len({row["rank"] for row in rows}) > 1


@pytest.mark.slow
def test_the_largest_value_alone_is_the_least_that_a_method_keeps(extract: Any) -> None:
    rows = record(extract(TUNED, BASE, "-n", "--json", "--method", "sv_ratio", "--param", 1))["modules"]
    assert ({row["rank"] for row in rows}, len(rows)) == ({1}, 192)


@pytest.mark.slow
def test_a_target_size_is_kept_and_used(extract: Any, tmp_path: Path) -> None:
    output = tmp_path / "lora.safetensors"
    found = record(extract(TUNED, BASE, "-o", output, "--target-size", "100kB", "--json"))
    assert 85_000 < output.stat().st_size <= 100_000
    assert output.stat().st_size == found["bytes"]
    even = record(extract(TUNED, BASE, "-n", "--dim", 1, "--json"))
    assert found["error"]["whole"] < even["error"]["whole"]
    kept = {row["module"]: row["rank"] for row in found["modules"]}
    assert len(set(kept.values())) > 2
    assert "even at rank 1" in extract(TUNED, BASE, "-n", "--target-size", "1kB").err


# -------------------------------------------------------------------------------- files of other makes


def test_other_types_give_the_same_change(extract: Any, tmp_path: Path) -> None:
    """fp32 against fp16, an old pickle, and bf16, whose steps are eight times as wide."""
    torch = pytest.importorskip("torch")
    wide = changed(
        tmp_path / "wide.safetensors", **{k: encode(v, "F32") for k, v in arrays_of(TUNED).items()}
    )
    pickle = tmp_path / "old.ckpt"
    torch.save(
        {"state_dict": {k: torch.from_numpy(v.copy()).half() for k, v in arrays_of(BASE).items()}}, pickle
    )
    plain, other = tmp_path / "plain.safetensors", tmp_path / "other.safetensors"
    assert extract(TUNED, BASE, "-o", plain, "--dim", 4, "--save-precision", "float").code == 0
    assert extract(wide, pickle, "-o", other, "--dim", 4, "--save-precision", "float").code == 0
    assert np.allclose(delta(plain, Q_NAME), delta(other, Q_NAME), atol=1e-7)
    rough = changed(
        tmp_path / "bf16.safetensors", **{k: encode(v, "BF16") for k, v in arrays_of(TUNED).items()}
    )
    floors = [
        next(
            r["floor"]
            for r in record(extract(path, BASE, "-n", "--json"))["modules"]
            if r["module"] == Q_NAME
        )
        for path in (TUNED, rough)
    ]
    assert floors[1] / floors[0] == pytest.approx(np.sqrt((64 + 1) / 2), rel=0.02)


@pytest.mark.slow
def test_scaled_8_bit_weights_are_read_with_their_scale(extract: Any, tmp_path: Path) -> None:
    weight = arrays_of(TUNED)[Q_KEY]
    codes = np.arange(256, dtype=np.uint8)
    table = decode("F8_E4M3", codes, (256,))
    table = np.where(np.isnan(table), np.inf, table)
    for scale in (np.float32(0.01), np.linspace(0.005, 0.02, weight.shape[0], dtype=np.float32)):
        rows = np.broadcast_to(np.reshape(scale, (-1, 1)), (weight.shape[0], 1))
        bytes_ = np.abs((weight / rows)[..., None] - table).argmin(-1).astype(np.uint8)
        path = changed(
            tmp_path / "fp8.safetensors",
            **{Q_KEY: Encoded("F8_E4M3", weight.shape, bytes_)},
            **{Q_KEY.removesuffix("weight") + "scale_weight": encode(np.asarray(scale), "F32")},
            scaled_fp8=Encoded("F8_E4M3", (0,), b""),
        )
        output = tmp_path / f"{np.size(scale)}.safetensors"
        done = extract(path, BASE, "-o", output, "--save-precision", "float")
        assert done.code == 0, done.err
        stored = table[bytes_] * rows
        assert np.allclose(delta(output, Q_NAME), stored - arrays_of(BASE)[Q_KEY], atol=1e-6)
        path.unlink()
    path = changed(
        tmp_path / "blocks.safetensors",
        **{Q_KEY: Encoded("F8_E4M3", weight.shape, bytes_)},
        **{Q_KEY.removesuffix("weight") + "scale_weight": encode(np.ones((4, 2)), "F32")},
    )
    done = extract(path, BASE, "-n")
    assert (done.code, "scaled by blocks" in done.err) == (2, True)


@pytest.mark.slow
def test_old_text_encoder_names_averages_and_position_ids(extract: Any, tmp_path: Path) -> None:
    tensors = tensors_of(TUNED)
    old = {key.replace("transformer.text_model.", "transformer."): value for key, value in tensors.items()}
    key = next(key for key in tensors if key.endswith("position_ids"))
    old[key.replace("text_model.", "")] = encode(np.full((1, 8), 40.99), "F16")
    old["model_ema.diffusion_modeloutweight"] = encode(np.ones(3), "F16")
    path = tmp_path / "old.safetensors"
    write_tensors(path, old)
    done = extract(path, BASE, "-n", "--json")
    found = record(done)
    assert len(found["modules"]) == 192
    assert "1 EMA average is passed over" in done.err


@pytest.mark.slow
def test_inpainting_models_compare_their_first_inputs(extract: Any, tmp_path: Path) -> None:
    key = "model.diffusion_model.input_blocks.0.0.weight"
    first = arrays_of(TUNED)[key]
    nine = np.concatenate([first + 1, np.zeros((first.shape[0], 5, 3, 3))], axis=1)
    path = changed(tmp_path / "inpainting.safetensors", **{key: nine})
    row = {r["title"]: r for r in record(extract(path, BASE, "-n", "--json"))["not_in_the_lora"]}
    conv = row["first and last convolutions"]
    assert (conv["count"], conv["largest"]) == (1, key)
    assert conv["change"] == pytest.approx(np.sqrt(first.size), rel=0.01)


# -------------------------------------------------------------------------------- what goes wrong


def test_equal_checkpoints_are_a_problem_not_an_empty_file(extract: Any, tmp_path: Path) -> None:
    copy, output = tmp_path / "copy.safetensors", tmp_path / "lora.safetensors"
    shutil.copy(BASE, copy)
    done = extract(copy, BASE, "-o", output)
    assert done.code == 1
    assert "no layer changed in 204 layers" in done.err
    assert not output.exists()


@pytest.mark.slow
def test_rounding_alone_is_no_signal(extract: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [k for k, v in arrays_of(BASE).items() if v.ndim >= 2 and k.startswith("model.diff")]
    wide = {
        k: v * (1 + 1e-4 * rng.standard_normal(v.shape)) for k, v in arrays_of(BASE).items() if k in names
    }
    left = changed(tmp_path / "left.safetensors", BASE, **{k: encode(v, "F32") for k, v in wide.items()})
    right = changed(tmp_path / "right.safetensors", BASE, **wide)
    done = extract(right, left, "-o", tmp_path / "lora.safetensors", "--dim", "signal")
    assert done.code == 1
    assert "differ by nothing but rounding" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "make", "message"),
    [
        (Q_KEY, lambda shape: np.full(shape, np.nan), "has NaN or infinite values"),
        (Q_KEY, lambda shape: np.zeros((shape[0], 48)), "not of one architecture"),
        (
            Q_KEY,
            lambda shape: Encoded("I8", shape, bytes(int(np.prod(shape)))),
            "of type I8, not of a float type",
        ),
    ],
)
def test_bad_tensors_are_named(key: str, make: Any, message: str, extract: Any, tmp_path: Path) -> None:
    path = changed(tmp_path / "bad.safetensors", **{key: make(arrays_of(TUNED)[key].shape)})
    for pair in ((path, BASE), (BASE, path)):
        done = extract(*pair, "-o", tmp_path / "lora.safetensors")
        assert (done.code, message in done.err) == (2, True), done.err
        assert key in done.err
        assert "Traceback" not in done.err
    assert not (tmp_path / "lora.safetensors").exists()


@pytest.mark.slow
def test_tensors_of_other_shapes_that_no_lora_needs_are_no_hindrance(extract: Any, tmp_path: Path) -> None:
    keys = ("first_stage_model.decoder.conv_in.weight", "model.diffusion_model.out.2.bias")
    path = changed(tmp_path / "other.safetensors", **{key: np.zeros((9,)) for key in keys})
    done = extract(path, BASE, "-n", "--json")
    assert len(record(done)["modules"]) == 192
    assert "not compared: 2 tensors of other shapes: " in done.err
    assert all(key in done.err for key in keys)


@pytest.mark.slow
def test_parts_that_one_file_lacks_are_said(extract: Any, tmp_path: Path) -> None:
    unet = changed(tmp_path / "unet.safetensors", drop=("cond_stage_model.", "first_stage_model."))
    done = extract(unet, BASE, "-n", "--json")
    assert len(record(done)["modules"]) == 181
    count = (
        sum(k.startswith("cond_stage_model.") for k in tensors_of(BASE)) - 1
    )  # position_ids are no weights
    assert f"{unet} has nothing of the text encoder; {count} tensors are not compared" in done.err
    one = changed(tmp_path / "one.safetensors", drop=(Q_KEY,))
    done = extract(one, BASE, "-n")
    assert f"only {BASE} has 1 tensor of the UNet" in done.err


def test_two_families_are_refused(extract: Any, tmp_path: Path) -> None:
    done = extract(TUNED, DATA / "merge/sdxl_base_fp16.safetensors", "-o", tmp_path / "lora.safetensors")
    assert done.code == 2
    assert f"{TUNED} is Stable Diffusion 1.x" in done.err
    assert "sdxl_base_fp16.safetensors is Stable Diffusion XL" in done.err


@pytest.mark.slow
def test_sd_scripts_own_line(extract: Any, tmp_path: Path) -> None:
    output = tmp_path / "lora.safetensors"
    line = f"--model_org {BASE} --model_tuned {TUNED} --save_to {output} --dim 4 --conv_dim 2 --device cuda"
    more = "--clamp_quantile 0.99 --min_diff 0.01 --load_precision fp16 --save_precision bf16 --no_metadata"
    done = extract(*line.split(), *more.split())
    assert (done.code, done.lines) == (0, [str(output)])
    for name in ("--device", "--clamp_quantile", "--load_precision"):
        assert f"note: {name}" in done.err
    assert (
        "11 layers differ by at most --min-diff 0.01" in done.err
    )  # the text encoder's, said instead of dropped
    with open_tensors(output) as file:
        assert {info.dtype for key, info in file.tensors.items() if key.endswith(".weight")} == {"BF16"}
    for flag, title in (("--sdxl", "--sdxl"), ("--v2", "--v2")):
        done = extract(TUNED, BASE, "-n", flag)
        assert (done.code, f"{title}: {TUNED} is Stable Diffusion 1.x" in done.err) == (2, True)


@pytest.mark.slow
def test_outputs_are_checked_before_the_work(extract: Any, tmp_path: Path) -> None:
    there = tmp_path / "there.safetensors"
    there.write_bytes(b"mine")
    copy = tmp_path / "tuned.safetensors"
    shutil.copy(TUNED, copy)
    for words, message in (
        (("-o", there), "exists already; give --force"),
        (("-o", tmp_path / "lora.ckpt"), "only safetensors are written"),
        (("-o", tmp_path / "no" / "lora.safetensors"), "does not exist"),
        (("-o", copy, "--force"), "is an input"),
        ((), "no output"),
        (("-o", tmp_path / "x.safetensors", "--dim", 0), "is not a rank"),
        (("-o", tmp_path / "x.safetensors", "--method", "sv_fro"), "needs a number"),
        (
            ("-o", tmp_path / "x.safetensors", "--dim", "signal", "--target-size", "1MB"),
            "--target-size chooses",
        ),
    ):
        done = extract(copy, BASE, *words)
        assert (done.code in (1, 2), message in done.err) == (True, True), done.err
    assert there.read_bytes() == b"mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there.safetensors", "tuned.safetensors"]
    assert extract(copy, BASE, "-o", f"{tmp_path}/", "--dim", 3).lines == [
        str(tmp_path / "tuned-base-dim3.safetensors")
    ]


@pytest.mark.slow
def test_a_stream_carries_the_file_and_a_dry_run_writes_nothing(extract: Any, tmp_path: Path) -> None:
    output = tmp_path / "lora.safetensors"
    extract(TUNED, BASE, "-o", output)
    done = extract(TUNED, BASE, "-o", "-", "--json")
    streamed = tmp_path / "streamed.safetensors"
    streamed.write_bytes(done.out)
    with open_tensors(output) as one, open_tensors(streamed) as two:
        assert {k: bytes(one.raw(k)) for k in one.tensors} == {k: bytes(two.raw(k)) for k in two.tensors}
    assert json.loads(done.err.splitlines()[-1])["path"] == "-"
    streamed.unlink()
    before = sorted(tmp_path.iterdir())
    done = extract(TUNED, BASE, "-o", tmp_path / "dry.safetensors", "-n", "--report")
    assert sorted(tmp_path.iterdir()) == before
    assert len(done.lines) == 193


def test_an_interrupt_leaves_nothing(extract: Any, tmp_path: Path, monkeypatch: Any) -> None:
    from lorapipe_resize.extract import extraction

    def interrupted(*_words: Any, **_more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(extraction, "make_piece", interrupted)
    done = extract(TUNED, BASE, "-o", tmp_path / "lora.safetensors")
    assert (done.code, "interrupted" in done.err) == (130, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_wrong_file_fails_its_proof(extract: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """--verify compares what is on the disk, so a writer that spoils one module is found out."""
    from lorapipe_resize.extract import run

    def spoil(path: Path, tensors: dict[str, Any], metadata: Any, *, force: bool) -> None:
        key = f"{Q_NAME}.lora_up.weight"
        write_tensors(
            path, tensors | {key: encode(np.zeros(tensors[key].shape), "F16")}, metadata, force=force
        )

    monkeypatch.setattr(run, "write_tensors", spoil)
    done = extract(TUNED, BASE, "-o", tmp_path / "lora.safetensors", "--verify")
    assert (done.code, f"module {Q_NAME}: read back" in done.err) == (1, True)
