"""diffusers folders whose weights lie in several files: shards, variants, and what is left of a broken download."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from lorapipe_engine.files.tensorfile import open_tensors
from support.commands import run
from support.kinds import PEOPLE, Array, Arrays, kohya, lora, module, numbers, save

UNET = "diffusion_pytorch_model"
TO_Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def weights(path: Path) -> Arrays:
    with open_tensors(path) as file:
        return {key: file.read(key) for key in file.tensors}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base with a UNet and a text encoder, each in one file."""
    for part, name in (("unet", f"{UNET}.safetensors"), ("text_encoder", "model.safetensors")):
        (tmp_path / "base" / part).mkdir(parents=True)
        shutil.copy(PEOPLE / "dif_plain" / part / name, tmp_path / "base" / part / name)
    (tmp_path / "base" / "model_index.json").write_text("{}")
    return tmp_path / "base"


def network(path: Path) -> Path:
    return save(path, module(kohya(TO_Q), lora()))


def shard(folder: Path) -> tuple[Path, dict[str, str]]:
    """The UNet in two shards; its index, and which layer is where."""
    whole = folder / "unet" / f"{UNET}.safetensors"
    tensors = weights(whole)
    whole.unlink()
    names, places = sorted(tensors), {}
    for number, keys in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        name = f"{UNET}-0000{number}-of-00002.safetensors"
        save(folder / "unet" / name, {key: tensors[key].astype(np.float16) for key in keys})
        places |= dict.fromkeys(keys, name)
    return write_index(folder, places), places


def write_index(folder: Path, places: Mapping[str, str]) -> Path:
    index = folder / "unet" / f"{UNET}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


def test_shards_are_the_whole(folder: Path, tmp_path: Path) -> None:
    net, whole, output = network(tmp_path / "n.safetensors"), tmp_path / "a", tmp_path / "b"
    for part in (whole, output):
        done = run("lora-merge", folder, net, "-o", part)
        assert done.returncode == 0, done.stderr
        if part == whole:
            shard(folder)
    merged: dict[str, Array] = {}
    for path in (output / "unet").glob("*.safetensors"):
        merged |= weights(path)
    expected = weights(whole / "unet" / f"{UNET}.safetensors")
    assert merged.keys() == expected.keys()
    assert all(np.array_equal(merged[key], expected[key]) for key in expected)


@pytest.mark.parametrize("kind", ["lists one", "lacks", "twice"])
def test_shards_that_are_not_what_their_index_says(kind: str, folder: Path, tmp_path: Path) -> None:
    """Half a UNet would be merged, or one of two values of a layer, and nothing said."""
    index, places = shard(folder)
    first, second = sorted(set(places.values()))
    if kind == "lists one":
        write_index(folder, {key: name for key, name in places.items() if name == first})
        told = "names 1 of 2 shards"
    elif kind == "lacks":
        write_index(folder, dict.fromkeys(places, first) | {min(places): second})
        told = "which lacks it"
    else:
        path = folder / "unet" / second
        tensors = weights(path) | {min(places): numbers(3)}
        path.unlink()
        save(path, tensors)
        told = "another shard has it too"
    net = network(tmp_path / "n.safetensors")
    for words in (
        ("lora-merge", folder, net),
        ("lora-merge", "--models", folder),
        ("lora-extract", folder, PEOPLE / "sd1_base.safetensors"),
    ):
        done = run(*words, "-o", tmp_path / "o.safetensors")  # type: ignore[arg-type]
        assert done.returncode == 2, done.stderr
        assert told in done.stderr
        assert index.name in done.stderr
        assert not (tmp_path / "o.safetensors").exists()


def test_the_variant_that_counts_is_told(folder: Path, tmp_path: Path) -> None:
    plain, half = folder / "unet" / f"{UNET}.safetensors", folder / "unet" / f"{UNET}.fp16.safetensors"
    save(half, {key: value * 0 for key, value in weights(plain).items()})
    tuned = tmp_path / "tuned"
    shutil.copytree(folder, tuned)
    (tuned / "unet" / half.name).unlink()
    path = tuned / "unet" / plain.name
    tensors = weights(path)
    tensors[f"{TO_Q}.weight"] = tensors[f"{TO_Q}.weight"] + numbers(16, 16).astype(np.float16)
    path.unlink()
    save(path, tensors)
    done = run("lora-extract", tuned, folder, "-n")
    assert done.returncode == 0, done.stderr
    assert f"note: {folder}: unet/{plain.name} counts, not unet/{half.name} beside it" in done.stderr
    assert "1 module" in done.stderr
    done = run("lora-extract", network(tmp_path / "n.safetensors"), folder, "-n")
    assert f"unet/{plain.name} counts" in done.stderr


def test_variants_in_32_bits(folder: Path, tmp_path: Path) -> None:
    plain = folder / "unet" / f"{UNET}.safetensors"
    plain.rename(plain.with_name(f"{UNET}.fp32.safetensors"))
    net = network(tmp_path / "n.safetensors")
    done = run("lora-merge", folder, net, "-o", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    (folder / "unet" / f"{UNET}.fp32.safetensors").rename(folder / "unet" / "mine.safetensors")
    done = run("lora-merge", folder, net, "-o", tmp_path / "other")
    assert done.returncode == 2
    assert "has no weights in unet/ under a name that diffusers gives them" in done.stderr
