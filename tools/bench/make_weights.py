"""Writes one weight file of real names, shapes and sizes, filled with seeded random numbers.

python make_weights.py FILE lora FAMILY RANK CONV_RANK SEED
python make_weights.py FILE checkpoint FAMILY
python make_weights.py FILE unet FAMILY
python make_weights.py FILE hole FAMILY
python make_weights.py FILE tuned BASE
python make_weights.py FILE module LORA
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from weights_shapes import Shape, checkpoint_shapes, is_trained, lora_shapes

from lorapipe_engine.files.tensorfile import (
    Encoded,
    TensorFile,
    build_header,
    encode,
    open_tensors,
    write_tensors,
)

TUNED_RANK = 24
# Singular values of a known change, smallest and largest, over the floor that rounding to fp16 makes.
SMALLEST, LARGEST = 3.0, 60.0
NOISE = 1 << 24  # numbers that checkpoints are cut from: more than any tensor needs but the token embeddings


def write_lora(path: Path, family: str, rank: int, conv_rank: int, seed: int) -> None:
    """A kohya LoRA, fp16, alpha = rank / 2; its singular values fall as those of trained networks do."""
    tensors = dict(_lora_tensors(lora_shapes(family, rank, conv_rank), seed))
    facts = {"ss_network_module": "networks.lora", "ss_network_dim": str(rank)}
    write_tensors(path, tensors, facts | {"ss_network_alpha": str(rank / 2), "ss_clip_skip": "2"})


def write_checkpoint(path: Path, family: str) -> None:
    """A single-file checkpoint, fp16: 2.1 GB for "sd1", 6.9 GB for "sdxl"."""
    _write_noise(path, checkpoint_shapes(family))


def write_unet(path: Path, family: str) -> None:
    """The UNet of a checkpoint alone: 5.1 GB for "sdxl"."""
    shapes = {
        key: s for key, s in checkpoint_shapes(family).items() if key.startswith("model.diffusion_model.")
    }
    _write_noise(path, shapes)


def write_hole(path: Path, family: str) -> None:
    """A checkpoint whose header is whole and whose numbers are a hole: all zero, and none of them on the disk."""
    header, places = build_header({key: ("F16", shape) for key, shape in checkpoint_shapes(family).items()})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + max(place.end for place in places.values()))


def write_module(path: Path, lora: Path) -> None:
    """The first module of a LoRA alone: a command on it is the command's start and next to nothing more."""
    with open_tensors(lora) as file:
        module = next(iter(file.tensors)).split(".")[0]
        parts = {
            name: encode(file.read(name), "F16") for name in file.tensors if name.split(".")[0] == module
        }
    write_tensors(path, parts, {"ss_network_module": "networks.lora"})


def write_tuned(path: Path, base: Path) -> None:
    """The checkpoint ``base`` with a change of rank 24 in every layer that kohya's trainer trains, convolutions too,
    rounded to fp16. Its singular values fall from 60 to 3 times the floor of the rounding.
    """
    with open_tensors(base) as file, path.open("wb") as out:
        header, places = build_header({key: (info.dtype, info.shape) for key, info in file.tensors.items()})
        out.write(header)
        for number, key in enumerate(places):
            out.write(_changed(file, key, number))


def _changed(file: TensorFile, key: str, number: int) -> bytes:
    shape = file.tensors[key].shape
    if len(shape) < 2 or not is_trained(key, shape):
        return bytes(file.raw(key))
    weight = file.read(key).reshape(shape[0], -1)
    rng = np.random.default_rng([7, number])
    rank = min(TUNED_RANK, *weight.shape)
    left, right = (np.linalg.qr(rng.standard_normal((n, rank)))[0] for n in weight.shape)
    # Steps of fp16 at the weights, as numpy has them.
    steps = np.spacing(np.abs(weight.reshape(-1)[::97]).astype(np.float16)).astype(np.float64)
    floor = math.sqrt(float(np.mean(np.square(steps))) / 12) * sum(math.sqrt(n) for n in weight.shape)
    sigma = np.geomspace(LARGEST, SMALLEST, rank) * floor
    change = (left * sigma).astype(np.float32) @ right.T.astype(np.float32)
    return (weight + change).astype(np.float16).tobytes()


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
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__)
        sys.exit()
    target, kind, model, *numbers = sys.argv[1:]
    if kind == "lora":
        write_lora(Path(target), model, *map(int, numbers))
    elif kind == "tuned":
        write_tuned(Path(target), Path(model))
    elif kind == "module":
        write_module(Path(target), Path(model))
    elif kind == "unet":
        write_unet(Path(target), model)
    elif kind == "hole":
        write_hole(Path(target), model)
    else:
        write_checkpoint(Path(target), model)
