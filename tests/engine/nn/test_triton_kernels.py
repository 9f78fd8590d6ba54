"""The kernels that run on a card compute what torch's own operations compute, shown without a card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("triton", reason="Triton is for Linux")

pytestmark = pytest.mark.torch


def test_kernels_agree_with_torch_on_whole_rows_and_on_slices() -> None:
    program = Path(__file__).parent / "kernels_interpreted.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    apart = json.loads(done.stdout)
    assert len(apart) == 21
    assert {name: value for name, value in apart.items() if not value < 1e-5} == {}
