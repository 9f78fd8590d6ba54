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
    ("top", "precision", "told"), [(1, "fp16", False), (1e-8, "fp16", True), (1e-8, "bf16", False)]
)
def test_values_that_become_zero_are_counted(
    top: float, precision: str, told: bool, write: Write, tmp_path: Path, resize: Any, extract: Any
) -> None:
    """Of the new file, by hand."""
    for tool, whole in ((resize, False), (extract, True)):
        output = tmp_path / f"{whole}.safetensors"
        done = tool(
            write(0.1, top=top, whole=whole), "-o", output, "--rank", 8, "--save-precision", precision
        )
        assert done.code == 0, done.err
        with open_tensors(output) as file:
            factors = [file.read(key) for key in file.tensors if not key.endswith(".alpha")]
        zeros, values = sum(int((one == 0).sum()) for one in factors), sum(one.size for one in factors)
        assert ("too small for fp16" in done.err) is told
        assert (f"note: {zeros:,} of {values:,} values are too small" in done.err) is told
        assert bool(zeros) is told


@pytest.mark.parametrize(("precision", "told"), [("fp16", True), ("bf16", False), ("fp32", False)])
def test_what_half_precision_takes_of_a_change_is_told(
    precision: str, told: bool, write: Write, tmp_path: Path, resize: Any, extract: Any
) -> None:
    for tool, whole in ((resize, False), (extract, True)):
        words = ("-o", tmp_path / f"{whole}.safetensors", "--rank", 8, "--save-precision", precision)
        done = tool(write(0.9, top=1e-14, whole=whole), *words)
        assert done.code == 0, done.err
        line = "1 module loses more than 1% of its change to numbers too small for fp16"
        assert (line in done.err) is told
        assert ("--save-precision bf16 or fp32 keeps it" in done.err) is told


def test_a_change_of_which_half_precision_makes_zeros_is_refused(
    write: Write, tmp_path: Path, resize: Any, extract: Any
) -> None:
    output = tmp_path / "out.safetensors"
    for tool, whole in ((resize, False), (extract, True)):
        done = tool(write(0.9, top=1e-20, whole=whole), "-o", output, "--rank", 8, "--save-precision", "fp16")
        assert done.code == 2
        assert "values are too small for" in done.err
        assert "--save-precision bf16 or fp32" in done.err
        assert not output.exists()


def test_strength_in_an_alpha_is_strength(write: Write, tmp_path: Path, resize: Any) -> None:
    """The same change with small factors and a large alpha: the same ranks, and nothing of it is dead."""
    path, output = write(0.9), tmp_path / "out.safetensors"
    with open_tensors(path) as file:
        tensors = {key: file.read(key) for key in file.tensors}
    up, alpha = (next(key for key in tensors if key.endswith(end)) for end in ("lora_up.weight", "alpha"))
    told = []
    for factor in (np.float32(1), np.float32(1e-5), np.float32(1e-7)):
        same = {**tensors, up: tensors[up] * factor, alpha: tensors[alpha] / factor}
        write_tensors(path, {key: encode(one, "F32") for key, one in same.items()}, {}, force=True)
        done = resize(path, "-o", output, "--new-rank", 4, "--force")
        assert done.code == 0, done.err
        told.append(done.err.split(" from truncation")[0])
    assert "rank 40 -> 4" in told[0]
    assert told[1:] == told[:1] * 2
    assert "dead" not in done.err


def test_an_alpha_of_zero_makes_a_module_dead(write: Write, tmp_path: Path, resize: Any) -> None:
    path, output = write(0.9), tmp_path / "out.safetensors"
    with open_tensors(path) as file:
        tensors = {key: file.read(key) * np.float32(not key.endswith(".alpha")) for key in file.tensors}
    write_tensors(path, {key: encode(one, "F32") for key, one in tensors.items()}, {}, force=True)
    assert "1 dead" in resize(path, "-o", output, "--new-rank", 4).err
