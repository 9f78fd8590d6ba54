"""Trainings at a tenth of the demo's rates, at its rates, and far above: drawn anew and told apart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CALIBRATE = Path(__file__).parents[2] / "tools" / "demo_world" / "calibrate.py"


def test_trainings_made_anew_are_told_apart(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(CALIBRATE), str(tmp_path), "--seeds", "1"], check=True)
    made = json.loads((tmp_path / "figures.json").read_text())
    seen = {name: counts["T"] for name, counts in made["judged"].items()}
    assert seen["once-1"] >= 6
    assert max(seen["tenth-1"], seen["fivefold-1"], seen["None"]) == 0
    lines = made["said"]["seed 1, by the encoder"]
    assert lines[0].startswith("take once-1: encoder")
    assert any(line.startswith("does not pass: fivefold-1: ") for line in lines)
    assert not made["said"]["seed 1, without a model"][0].startswith("take tenth-1")
