"""``lora-merge --networks`` as its users run it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lorapipe_engine.errors import ProblemFound
from lorapipe_engine.files.tensorfile import open_tensors, write_tensors
from lorapipe_engine.networks.describe import describe_network
from lorapipe_merge.inputs import open_networks
from lorapipe_merge.networks.layers import collect_layers
from lorapipe_merge.networks.report import LayerReport
from lorapipe_merge.networks.verify import verify_networks

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def words(data: Path) -> list[object]:
    return [f"{data / 'sd15_lora_A.safetensors'}:0.7", f"{data / 'sd15_lora_B.safetensors'}:0.5"]


def test_svd(words: list[object], merge: Run, tmp_path: Path) -> None:
    done = merge("--networks", *words, "-o", "OUT.safetensors", "--mode", "svd", "--new-rank", 3)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "OUT.safetensors\n"
    assert "0.7 x " in done.stderr
    assert "rank 2 to 7 -> 1 to 3" in done.stderr
    with open_tensors(tmp_path / "OUT.safetensors") as file:
        assert max(describe_network(file).ranks) == 3


def test_concat_is_the_default(words: list[object], merge: Run, tmp_path: Path) -> None:
    done = merge("--networks", *words, "-o", "OUT.safetensors", "--save_precision", "float")
    assert done.returncode == 0, done.stderr
    with open_tensors(tmp_path / "OUT.safetensors") as file:
        network = describe_network(file)
    assert max(network.ranks) == 7
    assert {module.alpha for module in network.modules.values()} == {7.0}


def test_networks_of_flow_stay_of_flow(data: Path, words: list[object], merge: Run, tmp_path: Path) -> None:
    with open_tensors(data / "sd15_lora_A.safetensors") as file:
        tensors = {name: file.read(name) for name in file.tensors}
        write_tensors(
            tmp_path / "flow.safetensors", tensors, {**file.metadata, "modelspec.prediction_type": "flow"}
        )
    done = merge("--networks", "flow.safetensors:0.7", words[1], "-o", "OUT.safetensors")
    assert done.returncode == 0, done.stderr
    with open_tensors(tmp_path / "OUT.safetensors") as file:
        assert file.metadata["modelspec.prediction_type"] == "flow"


def test_a_family_for_another_model(data: Path, words: list[object], merge: Run, tmp_path: Path) -> None:
    done = merge("--networks", words[0], data / "sdxl_lora_A.safetensors", "-o", "OUT.safetensors")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("lora-merge: error: networks for different models")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file(words: list[object], merge: Run, tmp_path: Path) -> None:
    done = merge("--networks", words[0], "nowhere.safetensors:0.5", "-o", "OUT.safetensors")
    assert done.returncode == 2
    assert "nowhere.safetensors" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("mode", [[], ["--mode", "svd", "--new-rank", 3]])
def test_verify(mode: list[object], precision: str, words: list[object], merge: Run) -> None:
    options = ("--verify", "--json", "--save-precision", precision, *mode)
    done = merge("--networks", *words, "-o", "OUT.safetensors", *options)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    verified, error = record["verified"], record["error"]
    assert verified["layers"] == record["modules"]
    assert 0 < verified["share"] <= 1
    # What dropped ranks and rounding lose, as the sum itself reported it.
    assert verified["error"] == pytest.approx(np.hypot(error["truncation"], error["cast"]), rel=0.02)
    assert "verified: " in done.stderr
    assert f"{record['modules']} modules are the sum" in done.stderr


@pytest.mark.parametrize("key", ["lora_up.weight", "alpha"])
def test_verify_finds_a_wrong_file(key: str, words: list[object], merge: Run, tmp_path: Path) -> None:
    """A value of a written sum is changed by a thousandth of the largest, or an alpha by a tenth."""
    merge("--networks", *words, "-o", "OUT.safetensors", "--save-precision", "fp32")
    networks = [(str(word).rpartition(":")[0], float(str(word).rpartition(":")[2])) for word in words]
    with open_networks(networks) as applied:
        layers = collect_layers(applied, "sd1")
        reports = [LayerReport(name=layer.name, networks=2) for layer in layers]
        assert verify_networks(tmp_path / "OUT.safetensors", layers, reports).layers == len(layers)
        with open_tensors(tmp_path / "OUT.safetensors") as file:
            tensors = {name: file.read(name) for name in file.tensors}
        name = next(name for name in tensors if name.endswith(key))
        changed = tensors[name].copy()
        if key == "alpha":
            changed *= 1.1
        else:
            changed[0, 0] += 1e-3 * np.abs(changed).max()
        write_tensors(tmp_path / "wrong.safetensors", tensors | {name: changed})
        module = name.removesuffix(f".{key}")
        with pytest.raises(ProblemFound, match=f"{module}: the written file differs"):
            verify_networks(tmp_path / "wrong.safetensors", layers, reports)
        short = {key: value for key, value in tensors.items() if not key.startswith(module)}
        write_tensors(tmp_path / "short.safetensors", short)
        with pytest.raises(ProblemFound, match=f"has no module {module}"):
            verify_networks(tmp_path / "short.safetensors", layers, reports)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--verify", "--dry-run"], "--verify reads the written file again"),
        (["--verify", "-o", "-"], "--verify reads the written file again"),
        (["--new-rank", 4], "--new-rank has a use only with --mode svd"),
        (["--one-more"], "--one-more has a use only with --dynamic-method"),
        (["--vae", "none.safetensors"], "--vae has no use with --networks; it belongs to --models"),
        (
            ["--allow-unmatched"],
            "--allow-unmatched has no use with --networks; it belongs to a merge into a checkpoint",
        ),
    ],
)
def test_options_without_a_use(options: list[object], told: str, words: list[object], merge: Run) -> None:
    done = merge("--networks", *words, "-o", "OUT.safetensors", *options)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_offset_noise_of_two_networks_is_told(data: Path, merge: Run, tmp_path: Path) -> None:
    for name, offsets in (("both", ("0.1", "0.05")), ("one", ("0.1", "None"))):
        for letter, offset in zip("AB", offsets, strict=True):
            with open_tensors(data / f"sd15_lora_{letter}.safetensors") as file:
                tensors = {key: file.read(key) for key in file.tensors}
                metadata = {**file.metadata, "ss_noise_offset": offset}
            write_tensors(tmp_path / f"{name}_{letter}.safetensors", tensors, metadata)
        inputs = [f"{name}_A.safetensors", f"{name}_B.safetensors"]
        done = merge("--networks", *inputs, "-o", f"{name}.safetensors")
        assert done.returncode == 0, done.stderr
        told = "note: both_A.safetensors, both_B.safetensors were trained with noise_offset" in done.stderr
        assert told is (name == "both")
        assert done.stderr.count("noise_offset") == int(told)


def write_full(path: Path, weight: float, bias: float) -> None:
    rng = np.random.default_rng(5)
    layer = "lora_unet_down_blocks_0_attentions_0_proj_in"
    tensors = {"diff": rng.standard_normal((8, 8)) * weight, "diff_b": rng.standard_normal(8) * bias}
    write_tensors(path, {f"{layer}.{key}": one.astype(np.float32) for key, one in tensors.items()})


def test_rounding_of_whole_changes_is_told(merge: Run, tmp_path: Path) -> None:
    """As its own files show it."""
    write_full(tmp_path / "in.safetensors", 1, 1)
    done = merge("--networks", "in.safetensors:0.3", "-o", "o.safetensors", "--precision", "bf16", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    lost = size = 0.0
    with open_tensors(tmp_path / "in.safetensors") as one, open_tensors(tmp_path / "o.safetensors") as two:
        for key in one.tensors:
            exact = one.read(key).astype(np.float64) * 0.3
            lost += float(np.sum(np.square(exact - two.read(key))))
            size += float(np.sum(np.square(exact)))
    assert report["error"] == {"truncation": 0.0, "cast": pytest.approx((lost / size) ** 0.5)}
    assert 0.0005 < report["error"]["cast"] < 0.004
    assert not report["notes"]


@pytest.mark.parametrize(
    ("weight", "bias", "refused"), [(1e-7, 1, False), (1, 1e-9, False), (1e-9, 1, True), (1e-9, 1e-9, True)]
)
def test_what_half_precision_takes(
    weight: float, bias: float, refused: bool, merge: Run, tmp_path: Path
) -> None:
    write_full(tmp_path / "in.safetensors", weight, bias)
    words = ("--networks", "in.safetensors:0.5", "-o", "o.safetensors", "--verify", "--force")
    done = merge(*words, "--save-precision", "fp16")
    assert "--save-precision bf16 or fp32" in done.stderr
    if refused:
        assert done.returncode == 2
        assert "values are too small for fp16, which makes zeros of them all" in done.stderr
        assert not (tmp_path / "o.safetensors").exists()
    else:
        assert done.returncode == 0, done.stderr
        assert "note: 1 module loses more than 1% of its change to numbers too small for fp16" in done.stderr
    done = merge(*words, "--save-precision", "bf16")
    assert done.returncode == 0, done.stderr
    assert "note:" not in done.stderr
