"""Merges into checkpoints against the reference's results."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lorapipe_engine.files.tensorfile import open_tensors

Run = Callable[..., "subprocess.CompletedProcess[str]"]
DATA = Path(__file__).resolve().parents[1] / "data" / "merge"
CASES = json.loads((DATA / "cases.json").read_text())


def words_of(case: dict[str, object]) -> list[object]:
    loras = [f"{DATA / str(name)}:{ratio}" for name, ratio in zip(case["loras"], case["ratios"], strict=True)]  # type: ignore[call-overload]
    blocks = ["--blocks", case["lbw"][0]] if case["lbw"] else []  # type: ignore[index]
    return [DATA / str(case["base"]), *loras, *blocks]


@pytest.mark.table
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("precision", ["fp32", "keep"])
def test_golden_merge(name: str, precision: str, merge: Run, tmp_path: Path) -> None:
    case = CASES[name]
    words = [*words_of(case), "-o", "out.safetensors", "--save-precision", precision]
    if case["unmatched_modules"]:
        refused = merge(*words)
        assert refused.returncode == 1
        assert all(module in refused.stderr for module in case["unmatched_modules"])
        assert list(tmp_path.iterdir()) == []
        words.append("--allow-unmatched")
    done = merge(*words, "--verify")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "out.safetensors\n"
    with (
        open_tensors(tmp_path / "out.safetensors") as out,
        open_tensors(DATA / case["expect"]) as expect,
        open_tensors(DATA / case["base"]) as base,
    ):
        assert out.tensors.keys() == base.tensors.keys()
        for key in case["passthrough"]:
            if precision == "keep":
                assert out.tensors[key].dtype == base.tensors[key].dtype
                assert out.raw(key) == base.raw(key)
            np.testing.assert_array_equal(out.read(key), base.read(key))
        off = total = 0
        for key in expect.tensors:
            found, wanted = out.read(key), expect.read(key)
            if precision == "fp32":
                assert np.abs(found - wanted).max(initial=0) <= 2e-6, key
                continue
            if out.tensors[key].dtype != "F16":
                continue
            halves = wanted.astype(np.float16)
            steps = np.abs(found.astype(np.float16).view(np.int16).astype(int) - halves.view(np.int16))
            assert steps.max(initial=0) <= 1, key
            off += int(np.count_nonzero(steps))
            total += steps.size
        assert off <= 1e-4 * total
