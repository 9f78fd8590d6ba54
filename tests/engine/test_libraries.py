"""What diffusers and transformers load, in a process of our own and in one that is shared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

pytestmark = pytest.mark.torch

PROGRAM = """
import sys
from lorapipe_engine.command.process.libraries import OWN_PROCESS, library_imports
OWN_PROCESS.set(sys.argv[1] == "alone")
with library_imports():
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel
print("imported")
import peft
"""


@pytest.mark.parametrize(
    ("process", "said"), [("alone", ["imported", "PEFT is loaded"]), ("shared", ["PEFT is loaded"])]
)
def test_a_program_of_ours_loads_no_more_than_it_uses(tmp_path: Path, process: str, said: list[str]) -> None:
    # Stands for PEFT, and is not enough for diffusers: in the shared process its import ends there.
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "__init__.py").write_text("print('PEFT is loaded')\n")
    words = [sys.executable, "-c", PROGRAM, process]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stdout.splitlines() == said
