"""What lora-resize and lora-extract say of ranks that cost a network its detail, and of ranks that do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.files.tensorfile import encode, open_tensors, write_tensors

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a network of one module of rank 40, whose singular values fall by ``falls`` each from ``top`` on; with
    ``whole`` its change is not in factors."""

    def make(falls: float, *, top: float = 1.0, whole: bool = False) -> Path:
        rng = np.random.default_rng(3)
        up, _ = np.linalg.qr(rng.standard_normal((64, 40)))
        down, _ = np.linalg.qr(rng.standard_normal((64, 40)))
        strengths = top * falls ** np.arange(40)
        name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
        tensors = {
            f"{name}.lora_up.weight": encode((up * strengths).astype(np.float32), "F32"),
            f"{name}.lora_down.weight": encode(down.T.astype(np.float32), "F32"),
            f"{name}.alpha": encode(np.float32(40), "F32"),
        }
        if whole:
            tensors = {f"{name}.diff": encode(((up * strengths) @ down.T).astype(np.float32), "F32")}
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


@pytest.mark.parametrize(
    ("falls", "rank", "low", "lossy"),
    [
        (0.5, 32, False, False),
        (0.8, 16, True, False),
        (0.99, 32, False, True),
        (0.99, 16, True, True),
        (0.3, 16, False, False),
    ],
)
def test_an_extraction_is_told_the_same(
    falls: float, rank: int, low: bool, lossy: bool, write: Write, tmp_path: Path, extract: Any
) -> None:
    done = extract(write(falls, whole=True), "-o", tmp_path / "out.safetensors", "--dim", rank)
    assert done.code == 0, done.err
    assert (f"note: rank {rank} is below 32" in done.err) is low
    assert ("of the change is lost, which shows in pictures" in done.err) is lossy


def test_what_is_lost_is_one_number(write: Write, tmp_path: Path, resize: Any) -> None:
    """Modules that keep their ranks are a part of the change."""
    path = write(0.99)
    with open_tensors(path) as file:
        tensors = {key: encode(file.read(key), "F32") for key in file.tensors}
    small = {key.replace("to_q", "to_k"): array for key, array in tensors.items()}
    up, down = (next(key for key in small if key.endswith(f"{side}.weight")) for side in ("up", "down"))
    ones = np.ones((64, 1), np.float32)
    small |= {up: encode(ones, "F32"), down: encode(ones.T.copy() / 640, "F32")}
    write_tensors(path, tensors | small, {}, force=True)
    done = resize(path, "-o", tmp_path / "out.safetensors", "--new-rank", 16)
    assert done.code == 0, done.err
    said = {line.split(" of the change is lost")[0].split(": ")[-1] for line in done.err.splitlines()[1:]}
    whole = done.err.split(", error ")[1].split(" from truncation")[0]
    assert whole in said


@pytest.mark.parametrize(
    ("top", "precision", "told"), [(1, "fp16", False), (1e-14, "fp16", True), (1e-14, "bf16", False)]
)
def test_values_that_become_zero_are_counted(
    top: float, precision: str, told: bool, write: Write, tmp_path: Path, resize: Any, extract: Any
) -> None:
    """Of the new file, by hand."""
    for tool, whole in ((resize, False), (extract, True)):
        output = tmp_path / f"{whole}.safetensors"
        done = tool(
            write(0.9, top=top, whole=whole), "-o", output, "--rank", 8, "--save-precision", precision
        )
        assert done.code == 0, done.err
        with open_tensors(output) as file:
            factors = [file.read(key) for key in file.tensors if not key.endswith(".alpha")]
        zeros, values = sum(int((one == 0).sum()) for one in factors), sum(one.size for one in factors)
        assert ("too small for fp16" in done.err) is told
        assert (f"note: {zeros:,} of {values:,} values are too small" in done.err) is told
        assert bool(zeros) is told
