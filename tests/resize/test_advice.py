"""What lora-resize says of ranks that cost a network its detail, and of ranks that do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.files.tensorfile import encode, write_tensors

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a network of one module of rank 40, whose singular values fall by ``falls`` each."""

    def make(falls: float) -> Path:
        rng = np.random.default_rng(3)
        up, _ = np.linalg.qr(rng.standard_normal((64, 40)))
        down, _ = np.linalg.qr(rng.standard_normal((64, 40)))
        strengths = falls ** np.arange(40)
        name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
        tensors = {
            f"{name}.lora_up.weight": encode((up * strengths).astype(np.float32), "F32"),
            f"{name}.lora_down.weight": encode(down.T.astype(np.float32), "F32"),
            f"{name}.alpha": encode(np.float32(40), "F32"),
        }
        path = tmp_path / "in.safetensors"
        write_tensors(path, tensors, {}, force=True)
        return path

    return make


@pytest.mark.parametrize(
    ("falls", "rank", "low", "lossy"),
    [(0.5, 32, False, False), (0.5, 16, True, False), (0.99, 32, False, True), (0.99, 16, True, True)],
)
def test_low_ranks_and_large_errors_are_told(
    falls: float, rank: int, low: bool, lossy: bool, write: Write, tmp_path: Path, resize: Any
) -> None:
    done = resize(write(falls), "-o", tmp_path / "out.safetensors", "--new-rank", rank)
    assert done.code == 0, done.err
    assert (f"note: rank {rank} is below 32" in done.err) is low
    assert ("of the change is lost, which shows in pictures" in done.err) is lossy
