"""A zoo of hostile files through every command: nothing outside of the named outputs changes, nothing runs, memory and
time are bounded, and what is wrong is said in one line.

A new animal is a row of ``ANIMALS``: a name, a function that makes it in a folder, and the commands that it meets. In a
command ``ZOO`` stands for the animal's folder and ``OUT`` for an empty folder, the only place where files may appear.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lorapipe_engine.files.tensorfile import write_tensors
from support.attacks import SECRET, digest, run_tool

MEMORY = 3 << 29  # bytes of address space
SECONDS = 30  # on a busy machine
MODULE = "lora_unet_down_blocks_0_attentions_0_proj_in"

# What a network, wherever it is from, goes through; NET is the file.
ON_NETWORKS = (
    "lora-inspect zeros NET",
    "lora-inspect keys NET",
    "lora-inspect meta NET",
    "lora-inspect meta NET --set a=b -o OUT/meta.safetensors",
    "lora-inspect norms NET",
    "lora-inspect ranks NET",
    "lora-inspect hash NET",
    "lora-inspect diff NET NET",
    "lora-inspect compat NET NET",
    "lora-inspect check NET",
    "lora-inspect delta NET -o OUT/delta.safetensors",
    "lora-resize NET --new_rank 2 -o OUT/resized.safetensors",
    "lora-merge --networks NET:0.5 NET:0.5 -o OUT/merged.safetensors",
    "lora-merge --undo NET -o OUT/base.safetensors",
    "lora-merge NET NET -o OUT/base.safetensors",
    "lora-merge --models NET NET -o OUT/both.safetensors",
    "lora-merge --models NET -o OUT/single.safetensors",
    "lora-merge --networks NET NET --average mean -o OUT/average.safetensors",
    "lora-convert NET --to diffusers -o OUT/converted.safetensors",
    "lora-extract NET NET --dim 2 -o OUT/extracted.safetensors",
    "lora-sample NET --base NET --prompt mina --dry-run -o OUT/drawn",
)


class Canary:
    """A pickle of it writes a file where it is loaded."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("touch ran",)


# -------------------------------------------------------------------------------- how they are made


def header(path: Path, text: bytes, length: int | None = None, data: bytes = b"") -> None:
    """A safetensors file with any header."""
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def pickled(folder: Path) -> None:
    (folder / "net.safetensors").write_bytes(pickle.dumps(Canary()))
    with zipfile.ZipFile(folder / "net.ckpt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"state_dict": Canary()}))
        archive.writestr("../../escaped", b"out of the folder")


def bomb(folder: Path) -> None:
    """A zip of a thousand times its size."""
    with zipfile.ZipFile(folder / "net.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (1 << 29))


def enormous(folder: Path) -> None:
    """Tensors that would take a petabyte."""
    shape = [1 << 25, 1 << 25]
    row = {"dtype": "F16", "shape": shape, "data_offsets": [0, 2 << 50]}
    header(folder / "net.safetensors", json.dumps({f"{MODULE}.lora_down.weight": row}).encode())


def empty_but_wide(folder: Path) -> None:
    """Tensors without a number, and one side of billions."""
    row = {"dtype": "F16", "shape": [0, 1 << 40], "data_offsets": [0, 0]}
    other = {"dtype": "F16", "shape": [1 << 40, 0], "data_offsets": [0, 0]}
    names = {f"{MODULE}.lora_down.weight": row, f"{MODULE}.lora_up.weight": other}
    header(folder / "net.safetensors", json.dumps(names).encode())


def sound(folder: Path, metadata: dict[str, str]) -> None:
    rng = np.random.default_rng(3)
    tensors = {
        f"{MODULE}.lora_down.weight": rng.standard_normal((4, 320)).astype(np.float32),
        f"{MODULE}.lora_up.weight": rng.standard_normal((320, 4)).astype(np.float32),
    }
    write_tensors(folder / "net.safetensors", tensors, metadata)


def with_metadata(folder: Path) -> None:
    """JSON in the metadata that costs more than it weighs, and letters that terminals obey."""
    deep = "[" * 50_000 + "]" * 50_000
    recipe = {"mode": "checkpoint", "networks": [3], "blocks": [], "base_dtype": {}}
    sound(
        folder,
        {
            "ss_network_args": deep,
            "ss_tag_frequency": '{"a": ' * 50_000 + "1" + "}" * 50_000,
            "ss_network_dim": "9" * 5000,
            "ss_output_name": "\x1b]0;title\x07\x1b[2J\u202e",
            "modelspec.title": "\x1b[31m",
            "lora_merge.recipe": json.dumps(recipe),
        },
    )


def names_as_keys(folder: Path) -> None:
    """Names of tensors that are paths and orders to a terminal."""
    tensors = {
        "../../../escaped": np.zeros(3, np.float32),
        "\x1b[2J.lora_up.weight": np.zeros((4, 2), np.float32),
    }
    write_tensors(folder / "net.safetensors", tensors)


def configuration(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "options.toml").write_text(text) and None  # type: ignore[func-returns-value]


def model_folder(index: str, config: str = "{}") -> Callable[[Path], None]:
    """A diffusers folder with a list of shards and a configuration of one's own."""

    def make(folder: Path) -> None:
        (folder / "model" / "unet").mkdir(parents=True)
        (folder / "model" / "model_index.json").write_text(config)
        (folder / "model" / "unet" / "config.json").write_text(config)
        (folder / "model" / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
        sound(folder, {})

    return make


ON_MODELS = (
    "lora-merge ZOO/model ZOO/net.safetensors -o OUT/merged",
    "lora-train --print-config --base ZOO/model --output_dir OUT",
)
ON_CONFIGURATIONS = ("lora-train --print-config --config_file ZOO/options.toml",)


@dataclass(frozen=True)
class Animal:
    """``make`` makes it in a folder; ``commands`` are run there; ``may_succeed``: some of them can do their work."""

    name: str
    make: Callable[[Path], object]
    commands: tuple[str, ...]
    may_succeed: bool = False


def on_network(name: str) -> tuple[str, ...]:
    return tuple(command.replace("NET", f"ZOO/{name}") for command in ON_NETWORKS)


NET = on_network("net.safetensors")
ANIMALS = (
    Animal("pickle as safetensors", pickled, NET[:4] + NET[11:15]),
    Animal("pickle that runs", pickled, on_network("net.ckpt"), may_succeed=True),
    Animal("zip bomb", bomb, tuple(on_network("net.ckpt")[n] for n in (1, 11, 12, 14)), may_succeed=True),
    Animal("petabyte", enormous, NET[:3] + NET[11:14]),
    Animal("wide and empty", empty_but_wide, NET, may_succeed=True),
    Animal(
        "header of 2^63", lambda f: header(f / "net.safetensors", b"{}", 1 << 63), (NET[0], NET[11], NET[12])
    ),
    Animal(
        "deep header",
        lambda f: header(f / "net.safetensors", b'{"a":' * 90_000 + b"1" + b"}" * 90_000),
        (NET[1], NET[11], NET[12]),
    ),
    Animal("metadata", with_metadata, NET, may_succeed=True),
    Animal("names", names_as_keys, NET, may_succeed=True),
    Animal(
        "shards elsewhere",
        model_folder('{"weight_map": {"a": "../../home/mine"}}'),
        ON_MODELS,
        may_succeed=True,
    ),
    Animal("shards in a list", model_folder('{"weight_map": [1]}'), ON_MODELS, may_succeed=True),
    Animal("deep shards", model_folder("[" * 100_000, "[" * 100_000), ON_MODELS, may_succeed=True),
    Animal("dots", configuration("a" + ".a" * 50_000 + " = 1"), ON_CONFIGURATIONS),
    Animal("class", configuration('optimizer_type = "ran.Adam"'), ON_CONFIGURATIONS, may_succeed=True),
    Animal("output elsewhere", configuration('log_prefix = "../../../home/"'), ON_CONFIGURATIONS),
)


@pytest.mark.slow
@pytest.mark.parametrize("animal", ANIMALS, ids=lambda animal: animal.name)
def test_the_zoo(animal: Animal, tmp_path: Path) -> None:
    zoo, out, home = (tmp_path / name for name in ("zoo", "out", "home"))
    for folder in (zoo, out, home):
        folder.mkdir()
    (home / "mine").write_bytes(SECRET)
    (zoo / "ran.py").write_text("open('ran', 'w')")
    animal.make(zoo)
    before = digest(tmp_path, out)
    for command in animal.commands:
        words = command.replace("ZOO", str(zoo)).replace("OUT", str(out)).split()
        environment = {"HOME": str(home), "XDG_CACHE_HOME": str(out / "cache")}
        done = run_tool(words, zoo, memory=MEMORY, timeout=SECONDS, environment=environment)
        # What looks at a file may have done its work, and say on stdout that the file is no good.
        looked = animal.may_succeed and (done.code == 0 or (done.code == 1 and not done.err and done.out))
        if not looked:
            done.assert_one_line()
        assert "Traceback" not in done.err
        assert "unexpected error" not in done.err, (command, done.err)
        assert not {"\x1b", "\x07"} & set(done.err + done.out), command
        assert digest(tmp_path, out) == before, command
        assert not any(path.name == "ran" for path in tmp_path.rglob("ran")), command
