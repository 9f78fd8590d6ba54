"""The kernels compute what torch's own operations compute: compiled where there is a card, else interpreted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("triton", reason="Triton is for Linux")

pytestmark = pytest.mark.torch


def test_kernels_agree_with_torch_on_whole_rows_and_on_slices() -> None:
    program = Path(__file__).parent / "kernels_compared.py"
    environment = {**os.environ, "TRITON_INTERPRET": "" if torch.cuda.is_available() else "1"}
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    apart = json.loads(done.stdout)
    assert len(apart) == 34
    assert {name: value for name, value in apart.items() if not value < 1e-5} == {}
