"""norms, ranks, diff and compat through the command line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.files.dtypes import Array
from lorapipe_engine.files.tensorfile import open_tensors, write_tensors
from support.commands import run

DATA = Path(__file__).resolve().parents[1] / "data"
SAMPLE = DATA / "inspect" / "sample.safetensors"
EXPECTED = DATA / "inspect" / "sample_expect.json"
LORA = DATA / "merge" / "sd15_lora_A.safetensors"


def inspect(*words: object) -> subprocess.CompletedProcess[str]:
    return run("lora-inspect", *words)


def record(*words: object, status: int = 0) -> dict[str, Any]:
    done = inspect(*words, "--json")
    assert done.returncode == status, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_golden_figures() -> None:
    found = record("norms", SAMPLE)["modules"]
    for name, wanted in json.loads(EXPECTED.read_text())["modules"].items():
        for key, value in wanted.items():
            if isinstance(value, float):
                assert found[name][key] == pytest.approx(value, rel=1e-6), (name, key)
            else:
                assert found[name][key] == value, (name, key)


def test_norms_are_those_of_the_dense_changes(tmp_path: Path) -> None:
    found = record("norms", LORA)
    assert inspect("delta", LORA, "-o", tmp_path / "delta.safetensors").returncode == 0
    with open_tensors(tmp_path / "delta.safetensors") as file:
        total = 0.0
        for name, row in found["modules"].items():
            matrix = file.read(name)
            sigma = np.linalg.svd(matrix.reshape(len(matrix), -1), compute_uv=False)
            assert row["fro"] == pytest.approx(np.linalg.norm(matrix), rel=1e-5)
            assert row["spectral"] == pytest.approx(sigma[0], rel=1e-5)
            total += row["fro"] ** 2
    assert found["network"]["fro"] == pytest.approx(total**0.5)
    assert sum(row["modules"] for row in found["blocks"].values()) == len(found["modules"])


def test_tables() -> None:
    done = inspect("norms", LORA, "--blocks", "--modules")
    assert done.returncode == 0
    assert "TE1" in done.stdout
    assert "lora_unet" in done.stdout
    assert "alpha" in inspect("ranks", LORA).stdout


def test_blocks_of_diffusers_and_ldm_names_agree() -> None:
    blocks = record("norms", LORA)["blocks"]
    assert set(blocks) <= {"TE1", "MID", *(f"{side}{n:02d}" for side in ("IN", "OUT") for n in range(12))}
    sdxl = record("norms", DATA / "merge" / "sdxl_lora_A.safetensors")["blocks"]
    assert {"TE1", "TE2"} <= set(sdxl)


def test_ranks_count_what_is_in_use() -> None:
    groups = record("ranks", LORA)["groups"]
    with open_tensors(LORA) as file:
        ups = sum(key.endswith("lora_up.weight") for key in file.tensors)
    assert sum(group["modules"] for group in groups) == ups
    assert all(group["used"] <= group["rank"] for group in groups)


def changed(path: Path, change: float) -> None:
    """The network with its ranks in another order, and one module's change made larger by a factor."""
    with open_tensors(LORA) as file:
        tensors: dict[str, Array] = {key: file.read(key) for key in file.tensors}
    for key in tensors:
        if key.endswith("lora_up.weight"):
            tensors[key] = tensors[key][:, ::-1]
        elif key.endswith("lora_down.weight"):
            tensors[key] = tensors[key][::-1]
    first = next(key for key in tensors if key.endswith("lora_up.weight"))
    tensors[first] = tensors[first] * change
    write_tensors(path, tensors, {"ss_network_dim": "99"})


def test_diff_compares_what_networks_do(tmp_path: Path) -> None:
    changed(tmp_path / "same.safetensors", 1.0)
    found = record("diff", LORA, tmp_path / "same.safetensors")
    assert found["same"]
    assert found["relative"] < 1e-6
    assert found["metadata"]["ss_network_dim"][1] == "99"
    changed(tmp_path / "other.safetensors", 1.5)
    found = record("diff", LORA, tmp_path / "other.safetensors", status=1)
    moved = [row for row in found["modules"].values() if row["apart"] > 1e-6 * row["norms"][0]]
    assert len(moved) == 1
    assert moved[0]["relative"] == pytest.approx(0.5, rel=1e-5)
    assert moved[0]["cosine"] == pytest.approx(1.0, rel=1e-6)


def test_diff_names_the_files(tmp_path: Path) -> None:
    changed(tmp_path / "same.safetensors", 1.0)
    found = record("diff", LORA, tmp_path / "same.safetensors")
    assert found["paths"] == [str(LORA), str(tmp_path / "same.safetensors")]
    assert found["only"] == [[], []]
    assert all(len(row["norms"]) == 2 for row in found["modules"].values())


def test_diff_sees_biases_and_norms(tmp_path: Path) -> None:
    """What a module does to its bias is a part of its change; norms can be compared, too."""
    plain, other = tmp_path / "plain.safetensors", tmp_path / "other.safetensors"
    q, norm = "lora_unet_mid_block_attentions_0_proj_in", "lora_unet_mid_block_attentions_0_norm"
    tensors: dict[str, Array] = {
        f"{q}.lora_down.weight": np.eye(2, 4, dtype=np.float32),
        f"{q}.lora_up.weight": np.eye(4, 2, dtype=np.float32),
        f"{norm}.w_norm": np.full(4, 2, np.float32),
    }
    write_tensors(plain, tensors)
    assert record("diff", plain, plain)["same"]
    write_tensors(other, tensors | {f"{q}.diff_b": np.full(4, 0.5, np.float32)})
    found = record("diff", plain, other, status=1)
    # ‖ΔA‖² is 2 for the identity of rank 2 and 16 for the norm; the bias differs by √(4 · 0.25).
    assert found["modules"][q]["norms"] == pytest.approx([2**0.5, 3**0.5])
    assert found["relative"] == pytest.approx(1 / 18**0.5)
    write_tensors(other, tensors | {f"{norm}.w_norm": np.full(4, 3, np.float32)}, force=True)
    assert record("diff", plain, other, status=1)["modules"][norm]["apart"] == pytest.approx(2)


def test_diff_of_equal_modules_that_depend_on_the_base(tmp_path: Path) -> None:
    path, other = DATA / "networks" / "dora_out.safetensors", tmp_path / "other.safetensors"
    assert record("diff", path, path)["same"]
    with open_tensors(path) as file:
        tensors: dict[str, Array] = {key: file.read(key) for key in file.tensors}
    first = next(key for key in tensors if key.endswith("dora_scale"))
    write_tensors(other, tensors | {first: tensors[first] * 2})
    assert "not compared: 1 module," in inspect("diff", path, other).stdout


def test_diff_gives_no_figure_of_what_it_did_not_compare(tmp_path: Path) -> None:
    """A difference of 0 would say that two files do the same."""
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    for file, columns in (("one", 4), ("two", 3)):
        tensors = {f"{name}.lora_down.weight": np.ones((2, columns), np.float32)}
        tensors[f"{name}.lora_up.weight"] = np.ones((4, 2), np.float32)
        write_tensors(tmp_path / f"{file}.safetensors", tensors)
    done = run("lora-inspect", "diff", "one.safetensors", "two.safetensors", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout.startswith("1 module in both\n")
    assert "not compared: 1 module, whose changes" in done.stdout
    assert "have other sizes in the two files" in done.stdout
    paths = (tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    found = json.loads(run("lora-inspect", "diff", *paths, "--json").stdout)
    assert found["relative"] is None


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (
            {"dora_scale": np.ones((4, 1))},
            "not counted: DoRA's magnitudes of 1 module, which act on the base",
        ),
        ({"diff_b": np.ones(4)}, "not counted: changes of the biases of 1 module"),
        ({}, ""),
    ],
)
def test_norms_tell_what_is_not_in_them(extra: dict[str, Array], told: str, tmp_path: Path) -> None:
    path, name = tmp_path / "a.safetensors", "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {"lora_down.weight": np.eye(2, 4), "lora_up.weight": np.eye(4, 2)} | extra
    write_tensors(path, {f"{name}.{suffix}": value.astype(np.float32) for suffix, value in tensors.items()})
    done = run("lora-inspect", "norms", path)
    assert done.returncode == 0
    assert told in done.stdout
    assert ("not counted" in done.stdout) == bool(told)


def test_norms_of_nothing_but_nan(tmp_path: Path) -> None:
    path, name = tmp_path / "a.safetensors", "lora_unet_mid_block_attentions_0_proj_in"
    tensors: dict[str, Array] = {f"{name}.lora_down.weight": np.full((2, 4), np.nan, np.float32)}
    write_tensors(path, tensors | {f"{name}.lora_up.weight": np.ones((4, 2), np.float32)})
    done = run("lora-inspect", "norms", path)
    assert done.returncode == 2
    assert f"have NaN or infinite values, as {name}" in done.stderr


def test_diff_of_other_modules() -> None:
    found = record("diff", LORA, DATA / "merge" / "sd15_lora_B.safetensors", status=1)
    assert any(found["only"])
    assert "only in" in inspect("diff", LORA, DATA / "merge" / "sd15_lora_B.safetensors").stdout


@pytest.mark.parametrize(
    ("name", "readers"),
    [
        ("lora", {"sd-scripts", "diffusers", "ComfyUI", "A1111", "Forge", "LyCORIS", "lora-merge"}),
        ("loha", {"LyCORIS", "ComfyUI", "A1111", "Forge"}),
        ("ia3_in", {"LyCORIS", "lora-merge"}),
    ],
)
def test_compat(name: str, readers: set[str]) -> None:
    programs = record("compat", DATA / "networks" / f"{name}.safetensors")["programs"]
    assert readers <= {program for program, answer in programs.items() if answer["reads"] == "yes"}
    if name != "lora":
        assert programs["diffusers"]["reads"] == "no"


@pytest.mark.parametrize("tool", ["norms", "ranks", "compat"])
def test_what_is_no_network(tool: str) -> None:
    done = inspect(tool, DATA / "merge" / "sd15_base_fp16.safetensors")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "not a LoRA" in done.stderr
