"""Small network files that tests write, the changes that they mean, and what commands make of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorapipe_engine.files.tensorfile import open_tensors, write_tensors
from support.commands import run

PEOPLE = Path(__file__).parents[1] / "data" / "people"
SD1, XL = PEOPLE / "sd1_base.safetensors", PEOPLE / "sdxl_base.safetensors"
PATH = "down_blocks.0.attentions.0.transformer_blocks.0"
TO_Q, TO_OUT = f"{PATH}.attn1.to_q", f"{PATH}.attn1.to_out.0"
CONV = "down_blocks.0.resnets.0.conv1"
LDM = "model.diffusion_model.input_blocks.1"
IN_BASE = {
    TO_Q: f"{LDM}.1.transformer_blocks.0.attn1.to_q.weight",
    TO_OUT: f"{LDM}.1.transformer_blocks.0.attn1.to_out.0.weight",
    CONV: f"{LDM}.0.in_layers.2.weight",
}
Array = NDArray[Any]
Arrays = dict[str, Array]


def kohya(path: str) -> str:
    """Kohya's name of a UNet layer."""
    return f"lora_unet_{path.replace('.', '_')}"


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def module(name: str, tensors: Mapping[str, Array]) -> Arrays:
    """A module's tensors under its name."""
    return {f"{name}.{suffix}": np.asarray(tensor) for suffix, tensor in tensors.items()}


def lora(
    rows: int = 16, columns: int = 16, rank: int = 2, alpha: float | None = None, seed: int = 0
) -> Arrays:
    """Plain factors of a layer by suffix."""
    found: Arrays = {
        "lora_down.weight": numbers(rank, columns, seed=seed),
        "lora_up.weight": numbers(rows, rank, seed=seed),
    }
    return found if alpha is None else found | {"alpha": np.float32(alpha)}


def change(tensors: Mapping[str, Array]) -> Array:
    """alpha / rank · up · down, float64."""
    up, down = (tensors[f"lora_{side}.weight"].astype(np.float64) for side in ("up", "down"))
    result: Array = up @ down * float(tensors.get("alpha", np.float32(len(down)))) / len(down)
    return result


def save(path: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    write_tensors(path, tensors, metadata)
    return path


def read(path: Path) -> Arrays:
    with open_tensors(path) as file:
        return {key: file.read(key).astype(np.float64) for key in file.tensors}


def refused(path: Path, words: tuple[object, ...], *told: str, tool: str = "lora-merge") -> None:
    """One line with these words and the file's name, nothing written."""
    output = path.parent / "out.safetensors"
    done = run(tool, *words, "-o", output)
    assert done.returncode in (1, 2), (words, done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for text in (*told, path.name):
        assert text in done.stderr
    assert not output.exists()


def writers(path: Path, base: Path = SD1) -> list[tuple[str, tuple[object, ...]]]:
    """Every command line that makes a file of a network."""
    return [
        ("lora-merge", (base, path)),
        ("lora-merge", ("--networks", path, path)),
        ("lora-convert", (path, "--to", "kohya")),
        ("lora-resize", (path, "--new-rank", 1)),
        ("lora-extract", (path, base, "--dim", 1)),
        ("lora-inspect", ("delta", path, "--base", base)),
    ]


def moved(path: Path, output: Path, base: Path = SD1) -> Arrays:
    """W' - W of a merge into a base, of the tensors that differ."""
    done = run("lora-merge", base, path, "--save-precision", "fp32", "-o", output)
    assert done.returncode == 0, done.stderr
    before, after = read(base), read(output)
    return {key: after[key] - before[key] for key in after if not np.array_equal(after[key], before[key])}
