"""Networks added up against exact sums in float64; truncated ones against the optimum (Eckart-Young)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.delta import Array
from lorapipe_engine.files.tensorfile import open_tensors
from lorapipe_engine.networks.describe import describe_network
from lorapipe_merge.networks.merge import merge_networks
from support.changes import changes
from support.sums import wishes

DATA = Path(__file__).resolve().parents[1] / "data"
CASES: dict[str, Any] = json.loads((DATA / "merge_networks/cases.json").read_text())
ROUNDING = {"fp32": 1e-6, "fp16": 1e-3}


def inputs_of(case: dict[str, Any]) -> list[tuple[str, float]]:
    folders = (DATA / "merge_networks", DATA / "merge")
    paths = [next(folder / name for folder in folders if (folder / name).exists()) for name in case["loras"]]
    return list(zip(map(str, paths), case["ratios"], strict=True))


def exact_changes(case: dict[str, Any]) -> dict[str, Array]:
    with open_tensors(DATA / "merge_networks" / case["exact"]) as file:
        return {name: file.read(name) for name in file.tensors}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("precision", ROUNDING)
def test_concat_is_exact(name: str, precision: str, tmp_path: Path) -> None:
    output = tmp_path / "sum.safetensors"
    assert (
        merge_networks(inputs_of(CASES[name]), wishes(str(output), save_precision=precision, verify=True))
        == 0
    )
    found, exact = changes(output), exact_changes(CASES[name])
    assert found.keys() == exact.keys()
    for module, change in exact.items():
        error = np.linalg.norm(found[module] - change)
        assert error <= ROUNDING[precision] * np.linalg.norm(change), module


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("rank", "conv_rank"), [(3, 2), (8, 8)])
def test_svd_is_optimal(name: str, rank: int, conv_rank: int, tmp_path: Path) -> None:
    output = tmp_path / "sum.safetensors"
    chosen = wishes(str(output), mode="svd", rank=rank, conv_rank=conv_rank, verify=True)
    assert merge_networks(inputs_of(CASES[name]), chosen) == 0
    found, exact = changes(output), exact_changes(CASES[name])
    with open_tensors(output) as file:
        kernels = {module: m.kernel for module, m in describe_network(file).modules.items()}
    for module, change in exact.items():
        singular = np.linalg.svd(change, compute_uv=False)
        kept = conv_rank if kernels[module] else rank
        optimum, size = np.linalg.norm(singular[kept:]), np.linalg.norm(change)
        # 1e-7: what float32 itself loses where nothing is dropped.
        assert np.linalg.norm(found[module] - change) <= 1.001 * optimum + 1e-7 * size, module
