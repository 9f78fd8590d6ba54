"""Several processes on cards, as far as a machine of one card shows it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")

from support.dataset import draw_data  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.torch,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a card"),
]

# Each process is told that it is the first of its host, so both have the first card.
ON_ONE_CARD = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no_python"),
    *("env", "LOCAL_RANK=0", sys.executable, "-m", "lorapipe_engine"),
]


def test_what_keeps_cards_apart_is_told_with_its_reason(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = draw_data(tmp_path_factory, pictures=4)
    words = ["--base", "demo", "--resolution", "64", "--network_dim", "4", "--train_data_dir", str(data)]
    done = subprocess.run(
        [*ON_ONE_CARD, *words, "--output_dir", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "MASTER_PORT": "0"},
        check=False,
    )
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("lora-train:")]
    assert told, done.stderr
    assert told[0].startswith("lora-train: error: 2 processes cannot be joined: Duplicate GPU detected")
