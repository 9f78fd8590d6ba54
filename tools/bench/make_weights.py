"""Writes one weight file of real names, shapes and sizes, filled with seeded random numbers.

python make_weights.py FILE lora FAMILY RANK CONV_RANK SEED
python make_weights.py FILE checkpoint FAMILY
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from weights_shapes import Shape, checkpoint_shapes, lora_shapes

from lorapipe_engine.files.tensorfile import Encoded, build_header, encode, write_tensors

NOISE = 1 << 24  # numbers that checkpoints are cut from: more than any tensor needs but the token embeddings


def write_lora(path: Path, family: str, rank: int, conv_rank: int, seed: int) -> None:
    """A kohya LoRA, fp16, alpha = rank / 2; its singular values fall as those of trained networks do."""
    tensors = dict(_lora_tensors(lora_shapes(family, rank, conv_rank), seed))
    facts = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank)}
    write_tensors(path, tensors, facts | {"ss_network_alpha": str(rank / 2), "ss_clip_skip": "2"})


def write_checkpoint(path: Path, family: str) -> None:
    """A single-file checkpoint, fp16: 2.1 GB for "sd1", 6.9 GB for "sdxl"."""
    _write_noise(path, checkpoint_shapes(family))


def _lora_tensors(shapes: dict[str, Shape], seed: int) -> Iterator[tuple[str, Encoded]]:
    rng = np.random.default_rng(seed)
    for name, shape in shapes.items():
        if shape == ():
            rank = shapes[name.removesuffix("alpha") + "lora_down.weight"][0]
            yield name, encode(np.asarray(rank / 2), "F16")
            continue
        values = rng.standard_normal(shape, dtype=np.float32) * 0.02
        if name.endswith("lora_up.weight"):
            fall = np.exp(-4.0 * np.arange(shape[1]) / shape[1])
            values *= fall.reshape(1, -1, *(1 for _ in shape[2:])).astype(np.float32)
            if "_layers_11_" in name and name.startswith(("lora_te_", "lora_te1_")):
                values[:] = 0  # what clip skip 2 leaves untrained
        yield name, encode(values, "F16")


def _write_noise(path: Path, shapes: dict[str, Shape]) -> None:
    noise = (np.random.default_rng(0).standard_normal(NOISE, dtype=np.float32) * 0.03).astype(np.float16)
    header, places = build_header({name: ("F16", shape) for name, shape in shapes.items()})
    with path.open("wb") as file:
        file.write(header)
        for number, name in enumerate(places):
            left, start = math.prod(shapes[name]), number * 7919 % 65536
            while left:
                piece = noise[start : start + left]
                file.write(piece.tobytes())
                left, start = left - len(piece), 0


if __name__ == "__main__":
    target, kind, model, *numbers = sys.argv[1:]
    if kind == "lora":
        write_lora(Path(target), model, *map(int, numbers))
    else:
        write_checkpoint(Path(target), model)
