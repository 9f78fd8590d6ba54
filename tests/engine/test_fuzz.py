"""A small share of what tools/fuzz_weights.py does; the full counts are in docs/benchmarks.md."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "fuzz_weights.py"


@pytest.mark.slow
def test_broken_weight_files() -> None:
    words = ["--headers", "20000", "--files", "300", "--seed", "7"]
    done = subprocess.run([sys.executable, TOOL, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "20,000 headers" in done.stdout
