"""lora-merge as a user meets it: undo, folders, pipes, and everything that goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lorapipe_engine.files.dtypes import Array, encode
from lorapipe_engine.files.tensorfile import open_tensors, write_tensors
from lorapipe_merge.cli import EXAMPLES

Run = Callable[..., "subprocess.CompletedProcess[str]"]
BASE, LORA = "sd15_base_fp16.safetensors", "sd15_lora_A.safetensors"


def tensors(path: Path) -> dict[str, bytes]:
    with open_tensors(path) as file:
        return {key: bytes(file.raw(key)) for key in file.tensors}


def refused(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """One clear line, the right status."""
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("lora-merge: error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert done.stdout == ""


def test_undo_gives_the_base_bit_for_bit(merge: Run, data: Path, tmp_path: Path) -> None:
    blocks = ["--blocks", "OUT03=0.5,TE=0.25"]
    done = merge(
        data / BASE, data / LORA, "--ratio", "0.8", *blocks, "-o", "m.safetensors", "--save-precision", "fp32"
    )
    assert done.returncode == 0, done.stderr
    assert tensors(tmp_path / "m.safetensors") != tensors(data / BASE)
    refused(merge("--undo", "m.safetensors", "-o", "b.safetensors"), 2, LORA, "is needed to undo")
    done = merge("--undo", "m.safetensors", data / LORA, "-o", "b.safetensors")
    assert done.returncode == 0, done.stderr
    assert tensors(tmp_path / "b.safetensors") == tensors(data / BASE)
    refused(merge("--undo", "b.safetensors", data / LORA, "-o", "c.safetensors"), 2, "no recipe")


def test_undo_of_rounded_merges_is_refused(merge: Run, data: Path) -> None:
    assert merge(data / BASE, data / LORA, "-o", "m.safetensors").returncode == 0
    refused(merge("--undo", "m.safetensors", data / LORA, "-o", "b.safetensors"), 2, "not fp32")


def test_undo_wants_the_same_network(merge: Run, data: Path, tmp_path: Path) -> None:
    merge(data / BASE, data / LORA, "-o", "m.safetensors", "--save-precision", "fp32")
    shutil.copy(data / "sd15_lora_B.safetensors", tmp_path / LORA)
    refused(merge("--undo", "m.safetensors", "-o", "b.safetensors"), 2, "sha256 differs")


def test_recipe_and_repeatable_bytes(merge: Run, data: Path, tmp_path: Path) -> None:
    for name in ("one.safetensors", "two.safetensors"):
        assert merge(data / BASE, f"{data / LORA}:0.5", "-o", "m.safetensors").returncode == 0
        (tmp_path / "m.safetensors").rename(tmp_path / name)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    with open_tensors(tmp_path / "one.safetensors") as file:
        recipe = json.loads(file.metadata["lora_merge.recipe"])
        assert recipe["networks"][0]["ratio"] == 0.5
        assert len(recipe["base"]["sha256"]) == 64
        assert recipe["base"]["sha256"] != "0" * 64
        assert file.metadata["modelspec.architecture"] == "stable-diffusion-v1"
    merge(data / BASE, f"{data / LORA}:0.5", "-o", "d.safetensors", SOURCE_DATE_EPOCH=0)
    with open_tensors(tmp_path / "d.safetensors") as file:
        assert file.metadata["modelspec.date"].startswith("1970-01-01")


def test_no_metadata(merge: Run, data: Path, tmp_path: Path) -> None:
    assert merge(data / BASE, data / LORA, "-o", "m.safetensors", "--no-metadata").returncode == 0
    with open_tensors(tmp_path / "m.safetensors") as file, open_tensors(data / BASE) as base:
        assert file.metadata == base.metadata


def test_ratio_zero_changes_nothing(merge: Run, data: Path, tmp_path: Path) -> None:
    assert merge(data / BASE, f"{data / LORA}:0", "-o", "m.safetensors").returncode == 0
    assert tensors(tmp_path / "m.safetensors") == tensors(data / BASE)


def test_dry_run_and_json(merge: Run, data: Path, tmp_path: Path) -> None:
    done = merge(data / BASE, data / LORA, "-o", "m.safetensors", "--dry-run", "--json")
    assert done.returncode == 0
    record = json.loads(done.stdout)
    assert record["matched"] > 0
    assert (record["path"], record["output"]) == (None, "m.safetensors")
    assert record["networks"][0]["path"] == str(data / LORA)
    assert "would merge" in done.stderr
    assert list(tmp_path.iterdir()) == []
    done = merge(data / BASE, data / LORA, "-o", "m.safetensors", "--json")
    assert json.loads(done.stdout)["path"] == "m.safetensors"
    for words in ((data / BASE, data / BASE), (data / BASE,)):
        done = merge("--models", *words, "-o", "n.safetensors", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["path"] == "n.safetensors"
        done = merge("--models", *words, "-o", "n.safetensors", "--json", "-n", "--force")
        assert json.loads(done.stdout)["path"] is None
        (tmp_path / "n.safetensors").unlink()


@pytest.mark.slow
def test_network_from_a_pipe(merge: Run, data: Path, tmp_path: Path) -> None:
    code = "from lorapipe_merge.cli import main; main()"
    with (data / LORA).open("rb") as stream:
        words = [sys.executable, "-c", code, str(data / BASE), "-", "-o", "m.safetensors", "-q"]
        subprocess.run(words, stdin=stream, cwd=tmp_path, check=True, capture_output=True)
    merge(data / BASE, data / LORA, "-o", "n.safetensors")
    assert tensors(tmp_path / "m.safetensors") == tensors(tmp_path / "n.safetensors")


def test_what_fits_nowhere_is_named(merge: Run, data: Path, tmp_path: Path) -> None:
    sdxl = data / "sdxl_lora_A.safetensors"
    refused(merge(data / BASE, sdxl, "-o", "m.safetensors"), 1, "is for Stable Diffusion XL", "1.x")
    refused(
        merge(data / BASE, sdxl, "-o", "m.safetensors", "--allow-unmatched"), 1, "is for Stable Diffusion XL"
    )
    other = {
        "lora_unet_nowhere.lora_up.weight": np.ones((2, 1)),
        "lora_unet_nowhere.lora_down.weight": np.ones((1, 2)),
    }
    write_tensors(tmp_path / "n.safetensors", other)
    refused(
        merge(data / BASE, "n.safetensors", "-o", "m.safetensors", "--allow-unmatched"), 1, "no module fits"
    )
    (tmp_path / "n.safetensors").unlink()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ([BASE, LORA], 2, "-o merged.safetensors"),
        ([BASE, "-o", "m.safetensors"], 2, "at least one network"),
        ([BASE, "no.safetensors", "-o", "m.safetensors"], 2, "no.safetensors: no such file"),
        ([LORA, LORA, "-o", "m.safetensors"], 2, "this is a LoRA"),
        ([BASE, BASE, "-o", "m.safetensors"], 2, "not a LoRA"),
        ([BASE, f"{LORA}:inf", "-o", "m.safetensors"], 2, "not a finite number"),
        ([BASE, LORA, "-o", "no/m.safetensors"], 1, "does not exist"),
        ([BASE, LORA, "-o", "."], 2, "is a folder"),
        ([BASE, LORA, "-o", "/dev/full", "--force"], 1, "not a regular file"),
        ([BASE, LORA, "-o", BASE], 2, "is the base itself"),
        ([BASE, LORA, "-o", LORA], 1, "exists already"),
        ([BASE, LORA, "-o", "m.safetensors", "--blocks", "1,2,3"], 2, "has 3 numbers"),
        ([BASE, LORA, "-o", "m.safetensors", "--blocks", "IN99=1"], 2, "no block 'IN99'"),
        ([BASE, LORA, "-o", "m.safetensors", "--blocks", ",".join("1" * 20)], 2, "this model's lists have"),
        ([BASE, LORA, "-o", "m.safetensors", "--networks", "--models"], 2, "exclude each other"),
        ([BASE, LORA, "-o", "m.safetensors", "--ration", "1"], 2, "did you mean --ratio"),
    ],
)
def test_bad_input(words: list[str], status: int, told: str, merge: Run, data: Path, tmp_path: Path) -> None:
    for name in (BASE, LORA):
        shutil.copy(data / name, tmp_path / name)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    refused(merge(*words), status, told)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_not_finite(merge: Run, data: Path, tmp_path: Path) -> None:
    with open_tensors(data / LORA) as file:
        network: dict[str, Array] = {key: file.read(key) for key in file.tensors}
    spoilt = next(key for key in network if key.endswith("lora_up.weight"))
    network[spoilt].reshape(-1)[3] = np.nan
    write_tensors(tmp_path / "nan.safetensors", network)
    refused(merge(data / BASE, "nan.safetensors", "-o", "m.safetensors"), 2, spoilt, "--allow-nonfinite")
    assert merge(data / BASE, "nan.safetensors", "-o", "m.safetensors", "--allow-nonfinite").returncode == 0


def test_values_too_large_for_fp16(merge: Run, data: Path, tmp_path: Path) -> None:
    refused(merge(data / BASE, f"{data / LORA}:1e9", "-o", "m.safetensors"), 1, "becomes infinite", "fp32")
    assert list(tmp_path.iterdir()) == []
    done = merge(data / BASE, f"{data / LORA}:1e9", "-o", "m.safetensors", "--save-precision", "bf16")
    assert done.returncode == 0, done.stderr


def test_replacing_the_base(merge: Run, data: Path, tmp_path: Path) -> None:
    shutil.copy(data / BASE, tmp_path / BASE)
    assert merge(BASE, data / LORA, "-o", BASE, "--force").returncode == 0
    merge(data / BASE, data / LORA, "-o", "m.safetensors")
    assert tensors(tmp_path / BASE) == tensors(tmp_path / "m.safetensors")


def test_merging_twice_is_told(merge: Run, data: Path) -> None:
    merge(data / BASE, data / LORA, "-o", "m.safetensors")
    assert "already" in merge("m.safetensors", data / LORA, "-o", "n.safetensors").stderr


def test_a_diffusers_folder(merge: Run, data: Path, tmp_path: Path) -> None:
    """The same layers in diffusers' names, in two files; everything else of the folder goes along."""
    from lorapipe_engine.models.keys import locate

    parts: dict[str, dict[str, Array]] = {"unet": {}, "te1": {}}
    names: dict[str, tuple[str, str]] = {}
    with open_tensors(data / BASE) as file:
        for key, info in file.tensors.items():
            places = locate(key, info.shape, "sd1")
            if len(places) == 1 and places[0].part in parts:
                parts[places[0].part][places[0].tensor] = file.read(key).astype(np.float16)
                names[key] = (places[0].part, places[0].tensor)
    model = tmp_path / "model"
    for part, folder in (("unet", "unet"), ("te1", "text_encoder")):
        (model / folder).mkdir(parents=True)
        stem = "diffusion_pytorch_model" if part == "unet" else "model"
        write_tensors(model / folder / f"{stem}.safetensors", parts[part])
    (model / "model_index.json").write_text("{}")
    (model / "vae").mkdir()
    (model / "vae" / "config.json").write_text("{}")
    done = merge("model", data / LORA, "--ratio", "0.8", "-o", "merged", "--verify")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "merged" / "vae" / "config.json").exists()
    merge(data / BASE, data / LORA, "--ratio", "0.8", "-o", "m.safetensors")
    single = tensors(tmp_path / "m.safetensors")
    unet = tensors(tmp_path / "merged" / "unet" / "diffusion_pytorch_model.safetensors")
    text = tensors(tmp_path / "merged" / "text_encoder" / "model.safetensors")
    for key, (part, name) in names.items():
        assert single[key] == (unet if part == "unet" else text)[name], key
    refused(merge("model", data / LORA, "-o", "merged"), 1, "exists already")


# -------------------------------------------------------------------------------- interrupted


def large_base(folder: Path) -> Path:
    """A base that takes a while: real names, 200 MB."""
    block = "model.diffusion_model.input_blocks"
    shapes = {
        f"{block}.{n}.1.transformer_blocks.0.attn2.to_k.weight": (4096, 768) for n in (1, 2, 4, 5, 7, 8)
    }
    shapes[f"{block}.3.0.op.weight"] = (64, 64, 3, 3)
    shapes |= {f"first_stage_model.filler.{n}": (1 << 22,) for n in range(20)}
    noise = np.random.default_rng(0).standard_normal(1 << 22).astype(np.float32)
    path = folder / "large.safetensors"
    write_tensors(path, {key: encode(np.resize(noise, shape), "F16") for key, shape in shapes.items()})
    names = [f"lora_unet_down_blocks_{(n - 1) // 3}_attentions_{(n - 1) % 3}" for n in (1, 2, 4, 5, 7, 8)]
    rng = np.random.default_rng(1)
    network = {}
    for name in names:
        module = f"{name}_transformer_blocks_0_attn2_to_k"
        network[f"{module}.lora_up.weight"] = rng.standard_normal((4096, 8)).astype(np.float32) * 0.01
        network[f"{module}.lora_down.weight"] = rng.standard_normal((8, 768)).astype(np.float32)
    write_tensors(folder / "net.safetensors", network)
    return path


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted(number: signal.Signals, tmp_path: Path) -> None:
    large_base(tmp_path)
    (tmp_path / "m.safetensors").write_bytes(b"old")
    code = "from lorapipe_merge.cli import main; main()"
    words = ["large.safetensors", "net.safetensors", "-o", "m.safetensors", "--force", "--verify"]
    running = subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 30
    while not list(tmp_path.glob(".lorapipe-*")) and time.monotonic() < until:
        time.sleep(0.005)
    running.send_signal(number)
    _, told = running.communicate(timeout=30)
    assert (tmp_path / "m.safetensors").read_bytes() == b"old"
    if number == signal.SIGINT:
        assert running.returncode == 130, told
        assert "interrupted" in told
        assert not list(tmp_path.glob(".lorapipe-*"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/shm").is_dir() or os.name == "nt", reason="needs limits of POSIX")
def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk that fills up while it is written."""
    large_base(tmp_path)
    (tmp_path / "m.safetensors").write_bytes(b"old")
    code = (
        "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000_000, 50_000_000));"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from lorapipe_merge.cli import main; main()"
    )
    words = ["large.safetensors", "net.safetensors", "-o", "m.safetensors", "--force"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    refused(done, 1, "m.safetensors", "cannot be written")
    assert (tmp_path / "m.safetensors").read_bytes() == b"old"
    assert not list(tmp_path.glob(".lorapipe-*"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_memory_stays_small(tmp_path: Path) -> None:
    large_base(tmp_path)
    code = (
        "import sys; from pathlib import Path; from lorapipe_merge.cli import lora_merge\n"
        "try:\n    lora_merge.main()\n"
        "finally:\n    print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    words = ["large.safetensors", "net.safetensors", "-o", "m.safetensors"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert int(done.stdout.split()[-1]) < 150_000


@pytest.mark.parametrize("words", [[BASE, LORA], ["--networks", LORA, LORA], ["--models", BASE, BASE]])
def test_a_dry_run_needs_no_name(words: list[str], merge: Run, data: Path, tmp_path: Path) -> None:
    done = merge(*(word if word.startswith("-") else data / word for word in words), "--dry-run")
    assert (done.returncode, list(tmp_path.iterdir())) == (0, []), done.stderr


def test_the_help_shows_a_merge_that_can_be_taken_back() -> None:
    lines = [line for line in EXAMPLES.splitlines() if "m32" in line]
    assert "--save-precision fp32" in lines[0]
    assert lines[1].startswith("lora-merge --undo m32.safetensors")
