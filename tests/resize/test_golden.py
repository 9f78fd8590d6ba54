"""The command against sd-scripts' results on the same files (ranks, alphas, changes)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.delta import Array
from lorapipe_engine.files.tensorfile import open_tensors
from lorapipe_engine.networks.describe import describe_network
from support.changes import changes

DATA = Path(__file__).parents[1] / "data/weights_resize"
CASES: dict[str, dict[str, Any]] = json.loads((DATA / "resize_expect.json").read_text())["cases"]


def options_of(case: dict[str, Any]) -> list[object]:
    words: list[object] = ["--new_rank", case["new_rank"], "--new_conv_rank", case["new_conv_rank"]]
    if case["method"] != "none":
        words += ["--dynamic_method", case["method"], "--dynamic_param", case["param"], "--one-more"]
    return words


@pytest.mark.parametrize("name", CASES)
def test_ranks_alphas_and_changes(name: str, tmp_path: Path, resize: Any) -> None:
    case, source, output = CASES[name], DATA / CASES[name]["input"], tmp_path / "out.safetensors"
    words = ["--model", source, "--save_to", output, "--save_precision", "float", "--keep-alphas"]
    done = resize(*words, *options_of(case))
    assert done.code == 0, done.err
    assert done.lines == [str(output)]
    before, after = changes(source), changes(output)
    with open_tensors(output) as file, open_tensors(DATA / "resize_expect_delta.safetensors") as golden:
        network = describe_network(file)
        assert set(network.modules) == set(case["modules"])
        for module, expected in case["modules"].items():
            found = network.modules[module]
            assert found.rank is not None
            if not _is_tiny(before[module]):
                assert found.rank == expected["capped_rank"], module
                assert found.alpha == pytest.approx(expected["capped_alpha"], rel=1e-6)
            _compare(after[module], _best(before[module], found.rank), module)
            if f"{name}/{module}" in golden.tensors and not _is_tiny(before[module]):
                _compare(after[module], golden.read(f"{name}/{module}"), module)


@pytest.mark.parametrize("name", ["fp32/sv_fro/0.9/rank64/conv64", "fp16/none/None/rank4/conv3"])
def test_one_alpha_is_the_same_change(name: str, tmp_path: Path, resize: Any) -> None:
    case, source = CASES[name], DATA / CASES[name]["input"]
    outputs = [tmp_path / "own.safetensors", tmp_path / "one.safetensors"]
    for output, more in zip(outputs, (["--keep-alphas"], []), strict=True):
        words = ["--model", source, "--save_to", output, "--save_precision", "float", *options_of(case)]
        assert resize(*words, *more).code == 0
    with open_tensors(outputs[1]) as file:
        alphas = {module.alpha for module in describe_network(file).modules.values()}
        assert len(alphas) == 1
        assert float(file.metadata["ss_network_alpha"]) in alphas
    own, one = map(changes, outputs)
    assert own.keys() == one.keys()
    for module, change in own.items():
        _compare(one[module], change, module)


def _is_tiny(change: Array) -> bool:
    """Whether sd-scripts leaves a change that is not zero one rank, for singular values below 1e-6."""
    return 0 < np.linalg.norm(change) < 1e-6


def _best(matrix: Array, rank: int) -> Array:
    left, sigma, right = np.linalg.svd(matrix, full_matrices=False)
    best: Array = (left[:, :rank] * sigma[:rank]) @ right[:rank]
    return best


def _compare(found: Array, expected: Array, module: str) -> None:
    size = float(np.linalg.norm(expected))
    if size < 1e-6:
        assert float(np.max(np.abs(found - expected))) <= 1e-9, module
    else:
        assert float(np.linalg.norm(found - expected)) <= 2e-5 * size, module


def test_one_more_is_what_sd_scripts_counted(tmp_path: Path, resize: Any) -> None:
    source = DATA / "resize_in_fp32.safetensors"
    words = ["--new-rank", 64, "--method", "sv_fro", "--param", 0.9]
    resize(source, "-o", tmp_path / "old.safetensors", *words, "--one-more")
    resize(source, "-o", tmp_path / "exact.safetensors", *words)
    with (
        open_tensors(tmp_path / "old.safetensors") as old,
        open_tensors(tmp_path / "exact.safetensors") as exact,
    ):
        ranks = describe_network(old).modules, describe_network(exact).modules
    pairs = [(ranks[0][name].rank, ranks[1][name].rank) for name in ranks[0]]
    assert all(a == b or a == (b or 0) + 1 for a, b in pairs)
    assert sum(a != b for a, b in pairs) > len(pairs) / 2
