"""``lora-train`` as its users run it: what a run leaves, what diffusers makes of it, and what happens when it fails."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("lorapipe_demo")

from safetensors.torch import load_file, save_file  # noqa: E402

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_demo.scene import TRIGGER  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.models.bases import resolve_base  # noqa: E402
from lorapipe_engine.settings import RunSettings  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from lorapipe_engine.train.network.files.apply import attach_file  # noqa: E402
from lorapipe_engine.train.results.outputs import remove_leftovers  # noqa: E402
from support.diffusers_reader import load_into, pipeline  # noqa: E402

TIMEOUT = 120


def command_line(data: Path, out: Path, *more: str) -> list[str]:
    """The arguments of a small run: base ``demo`` at 64 pixels on the CPU."""
    fixed = "--base demo --resolution 64 --max_token_length 75 --network_dim 4 --device cpu"
    return [*fixed.split(), "--train_data_dir", str(data), "--output_dir", str(out), *more]


def start(words: list[str]) -> subprocess.Popen[str]:
    """Start ``lora-train`` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "from lorapipe_engine.cli import train_main; train_main()", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@dataclass(frozen=True)
class Finished:
    """What came of a process."""

    code: int
    out: str
    err: str


def run(words: list[str]) -> Finished:
    """Run ``lora-train`` to its end."""
    process = start(words)
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    return Finished(process.returncode, out, err)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two drawn pictures."""
    root = tmp_path_factory.mktemp("data")
    draw_concept(root, TRIGGER, pictures=2, repeats=1, seed=3)
    return root


@pytest.fixture(scope="module")
def two_runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Finished]]:
    """The same command twice, into two folders: two epochs of two steps, with samples after each."""
    folder = tmp_path_factory.mktemp("runs")
    prompts = folder / "prompts.txt"
    prompts.write_text(f"{TRIGGER}, 1girl --s 2 --d 1\n", encoding="utf-8")
    more = "--output_name net --max_train_epochs 2 --save_precision float --seed 7 --sample_every_n_epochs 1"
    # A high rate, so that a wrong scale or a swapped module shows when the file is used.
    more += " --unet_lr 0.05 --text_encoder_lr 0.05 --lr_scheduler constant --network_alpha 2"
    found = []
    for name in ("first", "second"):
        words = command_line(data, folder / name, *more.split(), "--sample_prompts", str(prompts))
        found.append((folder / name, run(words)))
    return found


# ------------------------------------------------------------------------------------------------- results


def test_run_leaves_networks_samples_and_curves(two_runs: list[tuple[Path, Finished]]) -> None:
    folder, done = two_runs[0]
    assert done.code == 0, done.err
    assert done.out.splitlines() == [str(folder / "net-000001.safetensors"), str(folder / "net.safetensors")]
    rows = [json.loads(line) for line in (folder / "net.metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["loss/current"] > 0 for row in rows)
    assert [row["lr/unet"] for row in rows] == pytest.approx([0.05] * 4)
    samples = sorted(path.name for path in (folder / "sample").iterdir())
    assert samples == ["net_e000001_00.png", "net_e000002_00.png"]
    assert len(list((folder / "logs").glob("*/network_train/events.out.tfevents.*"))) == 1
    assert not list(folder.glob(".lorapipe*"))


def test_metadata_is_what_other_programs_read(two_runs: list[tuple[Path, Finished]]) -> None:
    with open_tensors(two_runs[0][0] / "net.safetensors") as file:
        metadata = file.metadata
        names = set(file.tensors)
    assert metadata["ss_network_module"] == "networks.lora"
    assert (metadata["ss_network_dim"], float(metadata["ss_network_alpha"])) == ("4", 2.0)
    assert (metadata["ss_steps"], metadata["ss_epoch"], metadata["ss_seed"]) == ("4", "2", "7")
    assert json.loads(metadata["ss_tag_frequency"])[f"1_{TRIGGER}"][TRIGGER] == 2
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert len(metadata["sshs_model_hash"]) == 64
    assert len(metadata["sshs_legacy_hash"]) == 8
    assert {name.partition("_")[0] for name in names} == {"lora"}
    assert any(name.startswith("lora_te_text_model_encoder_layers_0_") for name in names)


def test_same_seed_gives_the_same_bits(two_runs: list[tuple[Path, Finished]]) -> None:
    for name in ("net-000001.safetensors", "net.safetensors"):
        first, second = (load_file(folder / name) for folder, _ in two_runs)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    early, late = (load_file(two_runs[0][0] / name) for name in ("net-000001.safetensors", "net.safetensors"))
    assert any(not torch.equal(early[key], late[key]) for key in early)


def test_diffusers_draws_the_same(
    two_runs: list[tuple[Path, Finished]], caplog: pytest.LogCaptureFixture
) -> None:
    path = two_runs[0][0] / "net.safetensors"
    torch.manual_seed(0)
    latents, times = torch.randn(1, 4, 16, 16), torch.tensor([500])

    base = load_base(resolve_base("demo"))
    theirs = pipeline(base.denoiser, base.vae, base.text_encoders)
    ids = torch.tensor([[*range(500, 560), *[theirs.text_encoder.config.eos_token_id] * 17]])
    base_text, base_noise = predicted(theirs, ids, latents, times)
    load_into(theirs, path, caplog)
    their_text, their_noise = predicted(theirs, ids, latents, times)
    assert count_adapted(theirs) == sum(key.endswith(".alpha") for key in load_file(path))

    family = open_family(load_base(resolve_base("demo")), max_token_length=75)
    attach_file(family, path)
    with torch.no_grad():
        our_text = family.text.modules["te1"](ids)[0]
        our_noise = family.denoiser(latents, times, our_text).sample
    assert (their_text - base_text).abs().max() > 0.01  # the network does change both
    assert (their_noise - base_noise).abs().max() > 0.01
    assert (our_text - their_text).abs().max() < 1e-4
    assert (our_noise - their_noise).abs().max() < 1e-4


def predicted(pipe: Any, ids: Any, latents: Any, times: Any) -> tuple[Any, Any]:
    """Text states (1, 77, C) and the UNet's output (1, 4, 16, 16) with the pipeline's modules."""
    with torch.no_grad():
        text = pipe.text_encoder(ids)[0]
        return text, pipe.unet(latents, times, text).sample


def count_adapted(pipe: Any) -> int:
    """Modules that peft has given a LoRA."""
    return sum(
        name.rpartition(".")[2] == "lora_A"
        for root in (pipe.unet, pipe.text_encoder)
        for name, _ in root.named_modules()
    )


# ------------------------------------------------------------------------------------------------- bad input


class Attack:
    """A pickle that makes a file where it is loaded without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.marker),)


Words = list[str]


def absent_folder(place: Path, good: Path) -> Words:
    return command_line(place / "nowhere", place / "out")


def no_level(place: Path, good: Path) -> Words:
    shutil.copytree(good / f"1_{TRIGGER}", place / "pictures")
    return command_line(place / "pictures", place / "out")


def empty_dataset(place: Path, good: Path) -> Words:
    (place / "data" / "3_nothing").mkdir(parents=True)
    return command_line(place / "data", place / "out")


def cut_image(place: Path, good: Path) -> Words:
    folder = draw_concept(place / "data", TRIGGER, pictures=2, repeats=1, seed=3)
    whole = (folder / "001.png").read_bytes()
    (folder / "001.png").write_bytes(whole[: len(whole) // 2])
    return command_line(place / "data", place / "out", "--quiet")


def cut_header(place: Path, good: Path) -> Words:
    folder = draw_concept(place / "data", TRIGGER, pictures=2, repeats=1, seed=3)
    (folder / "001.png").write_bytes((folder / "001.png").read_bytes()[:20])
    return command_line(place / "data", place / "out")


def latin_caption(place: Path, good: Path) -> Words:
    folder = draw_concept(place / "data", TRIGGER, pictures=2, repeats=1, seed=3)
    (folder / "001.txt").write_bytes("caf\xe9, 1girl".encode("latin-1"))
    return command_line(place / "data", place / "out")


def lora_as_base(place: Path, good: Path) -> Words:
    tensors = {
        "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 128, 1, 1),
        "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.zeros(128, 4, 1, 1),
        "lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(4.0),
    }
    save_file(tensors, place / "style.safetensors")
    return command_line(good, place / "out", "--base", str(place / "style.safetensors"))


def truncated_base(place: Path, good: Path) -> Words:
    with Path(resolve_base("demo")).open("rb") as file:
        (place / "half.safetensors").write_bytes(file.read(1_000_000))
    return command_line(good, place / "out", "--base", str(place / "half.safetensors"))


def evil_base(place: Path, good: Path) -> Words:
    torch.save({"state_dict": Attack(place / "marker")}, place / "evil.ckpt")
    return command_line(good, place / "out", "--base", str(place / "evil.ckpt"))


def evil_plain_pickle(place: Path, good: Path) -> Words:
    (place / "evil.ckpt").write_bytes(pickle.dumps(Attack(place / "marker")))
    return command_line(good, place / "out", "--base", str(place / "evil.ckpt"))


def absent_base(place: Path, good: Path) -> Words:
    return command_line(good, place / "out", "--base", str(place / "nowhere.safetensors"))


def locked_output(place: Path, good: Path) -> Words:
    (place / "file").write_text("in the way")
    return command_line(good, place / "file" / "out")


def unknown_option(place: Path, good: Path) -> Words:
    return command_line(good, place / "out", "--netwrok_dim", "8")


def bad_number(place: Path, good: Path) -> Words:
    return command_line(good, place / "out", "--max_train_steps", "many")


def negative_number(place: Path, good: Path) -> Words:
    return command_line(good, place / "out", "--train_batch_size", "-1")


def done_before(place: Path, good: Path) -> Words:
    (place / "out").mkdir()
    (place / "out" / "last-000003.safetensors").write_bytes(b"precious")
    return command_line(good, place / "out")


def unknown_key(place: Path, good: Path) -> Words:
    (place / "run.toml").write_text("[network]\nnetwork_dmi = 8\n")
    return command_line(good, place / "out", "--config_file", str(place / "run.toml"))


def broken_toml(place: Path, good: Path) -> Words:
    (place / "run.toml").write_text("network_dim = = 8\n")
    return command_line(good, place / "out", "--config_file", str(place / "run.toml"))


def bad_prompts(place: Path, good: Path) -> Words:
    (place / "prompts.txt").write_text("1girl --w wide\n")
    return command_line(
        good, place / "out", "--sample_prompts", str(place / "prompts.txt"), "--sample_every_n_steps", "1"
    )


def two_forms(place: Path, good: Path) -> Words:
    return command_line(good, place / "out", "--quantize_base", "int8", "--fp8_base")


def bad_optimizer(place: Path, good: Path) -> Words:
    return command_line(good, place / "out", "--optimizer_type", "AdamX")


def half_full(place: Path, good: Path) -> Words:
    return command_line(good, place / "out", "--full_bf16")


def no_base(place: Path, good: Path) -> Words:
    return ["--train_data_dir", str(good), "--output_dir", str(place / "out")]


# What is done wrong, the exit code, words that the line must hold.
BAD: list[tuple[Callable[[Path, Path], Words], int, tuple[str, ...]]] = [
    (absent_folder, 2, ("nowhere",)),
    (no_level, 2, ("pictures", "N_concept", "10_pictures")),
    (empty_dataset, 2, ("data",)),
    (cut_image, 2, ("001.png",)),
    (cut_header, 2, ("001.png",)),
    (latin_caption, 2, ("001.txt", "UTF-8")),
    (lora_as_base, 2, ("style.safetensors", "LoRA")),
    (truncated_base, 2, ("half.safetensors",)),
    (evil_base, 2, ("evil.ckpt",)),
    (evil_plain_pickle, 2, ("evil.ckpt",)),
    (absent_base, 2, ("nowhere.safetensors",)),
    (locked_output, 1, ("out", "write")),
    (unknown_option, 2, ("--netwrok_dim", "--network_dim")),
    (bad_number, 2, ("max_train_steps", "many")),
    (negative_number, 2, ("train_batch_size", "-1")),
    (done_before, 1, ("last-000003.safetensors", "--overwrite")),
    (unknown_key, 2, ("network_dmi", "network_dim")),
    (broken_toml, 2, ("run.toml",)),
    (bad_prompts, 2, ("prompts.txt:1", "wide")),
    (bad_optimizer, 2, ("AdamX", "AdamW")),
    (two_forms, 2, ("quantize_base", "fp8_base")),
    (half_full, 2, ("full_bf16", "--mixed_precision bf16")),
    (no_base, 2, ("--base",)),
]


@pytest.mark.parametrize(("mistake", "code", "words"), BAD, ids=[row[0].__name__ for row in BAD])
def test_bad_input_gives_one_line(
    mistake: Callable[[Path, Path], Words],
    code: int,
    words: tuple[str, ...],
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = mistake(tmp_path, data)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        lora_train.main(arguments)
    shown = capsys.readouterr()
    assert stopped.value.code == code, shown.err
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1, shown.err
    assert shown.err.startswith("lora-train: error: ")
    assert all(word in shown.err for word in words), shown.err
    assert not (tmp_path / "marker").exists()
    assert not list(tmp_path.rglob("last.safetensors"))


@pytest.mark.parametrize("mistake", [evil_base, bad_number])
def test_bad_input_in_a_process_of_its_own(
    mistake: Callable[[Path, Path], Words], data: Path, tmp_path: Path
) -> None:
    done = run(mistake(tmp_path, data))
    assert (done.code, done.out) == (2, "")
    assert len(done.err.splitlines()) == 1, done.err
    assert not (tmp_path / "marker").exists()


def test_attack_would_work_without_care(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Attack(tmp_path / "marker")))  # noqa: S301
    assert (tmp_path / "marker").exists()


def test_results_that_exist_stay_as_they_are(data: Path, tmp_path: Path) -> None:
    words = done_before(tmp_path, data)
    with pytest.raises(SystemExit):
        lora_train.main(words)
    assert (tmp_path / "out" / "last-000003.safetensors").read_bytes() == b"precious"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["last-000003.safetensors"]


# ------------------------------------------------------------------------------------------------- ends


def start_long(data: Path, out: Path) -> subprocess.Popen[str]:
    """A run that saves after every step, and does not end by itself; returns when its first file is there."""
    process = start(command_line(data, out, "--max_train_steps", "100000", "--save_every_n_steps", "1"))
    until = time.monotonic() + TIMEOUT
    while not list(out.glob("*.safetensors")):
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            pytest.fail(f"no file was saved: {process.communicate()[1]}")
        time.sleep(0.01)
    return process


def read_whole(folder: Path) -> list[Path]:
    """The networks of a folder, every tensor of every one read."""
    found = sorted(folder.glob("*.safetensors"))
    for path in found:
        assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())
    return found


@pytest.mark.parametrize("attempt", range(3))
def test_killed_run_leaves_only_whole_files(attempt: int, data: Path, tmp_path: Path) -> None:
    process = start_long(data, tmp_path / "out")
    time.sleep(random.uniform(0, 0.5))
    process.kill()
    process.communicate()
    assert read_whole(tmp_path / "out")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for other processes")
def test_interrupted_run_saves_and_tells(data: Path, tmp_path: Path) -> None:
    process = start_long(data, tmp_path / "out")
    time.sleep(random.uniform(0, 0.3))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    *_, stopped, last = [
        line for line in err.splitlines() if line
    ]  # click ends the line of the terminal's ^C
    assert last == "lora-train: interrupted"
    told = stopped.partition("; saved: ")[2].split(", ")
    assert sorted(Path(word) for word in told) == read_whole(tmp_path / "out")
    assert not list((tmp_path / "out").glob(".lorapipe*"))


def test_leftovers_of_a_killed_run_are_removed(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "sample").mkdir(parents=True)
    old = [out / ".lorapipe-00.tmp", out / "sample" / ".lorapipe-01.tmp"]
    young, other = out / ".lorapipe-02.tmp", out / "notes.tmp"
    for path in (*old, young, other):
        path.write_bytes(b"half")
    for path in (*old, other):
        os.utime(path, (time.time() - 90, time.time() - 90))
    with pytest.raises(SystemExit):  # the folder is cleaned before the dataset is looked at
        lora_train.main(command_line(tmp_path / "nowhere", out))
    assert not any(path.exists() for path in old)
    assert young.exists()
    assert other.exists()
    assert remove_leftovers(RunSettings(output_dir=out), now=time.time() + 90) == [young]
    assert other.exists()
