"""``lora-merge --networks`` as its users run it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lorapipe_engine.files.tensorfile import open_tensors
from lorapipe_engine.networks.describe import describe_network

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
