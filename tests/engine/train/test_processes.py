"""Several processes that train one network: they make what one makes with batches as large as theirs together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("accelerate")
pytest.importorskip("lorapipe_demo")

from safetensors.torch import load_file  # noqa: E402

from lorapipe_demo.scene import TRIGGER  # noqa: E402
from lorapipe_engine.command.process.programs import find_program  # noqa: E402
from support.dataset import draw_data  # noqa: E402
from support.launched import processes_of  # noqa: E402
from support.warm import warm_folder  # noqa: E402

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="torchrun has no gloo rendezvous there"),
]

# As programs of the warm folder; accelerate starts the processes anew.
TORCHRUN = ["torchrun", "--nproc_per_node", "2", "--no_python", "lora-train"]
ACCELERATE = [
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "lorapipe_engine"),
]
ALONE = ["lora-train"]
TIMEOUT = 240


def environment() -> dict[str, str]:
    path = os.pathsep.join((str(warm_folder()), os.environ["PATH"]))
    # torchrun picks a free port of its own where none is given.
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "MASTER_PORT": "0"}


def start(launcher: list[str], data: Path | None, out: Path, *more: str) -> subprocess.Popen[str]:
    """``data``: None for a run without pictures."""
    fixed = "--base demo --resolution 64 --max_token_length 75 --network_dim 4 --device cpu --output_name net"
    fixed += " --save_precision float"
    fixed += (
        "" if data is None else f" --noise_offset 0.05 --adaptive_noise_scale 0.01 --train_data_dir {data}"
    )
    words = [*fixed.split(), "--output_dir", str(out), *more]
    return subprocess.Popen(
        [*launcher, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def run(launcher: list[str], data: Path | None, out: Path, *more: str) -> tuple[int, str, str]:
    process = start(launcher, data, out, *more)
    try:
        said, told = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    return process.returncode, said, told


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven pictures: the last batch of an epoch is short, and one process has fewer rows of it than the other."""
    return draw_data(tmp_path_factory, pictures=7)


def assert_close(one: Path, two: Path) -> None:
    first, second = load_file(one), load_file(two)
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        # AdamW makes whole steps of gradients that are next to nothing, so single values may differ by a hundredth of a
        # step from one processor's order of sums to another's; nearly all values, and the tensor as a whole, do not.
        torch.testing.assert_close(second[key], tensor, rtol=1e-3, atol=5e-5)
        close = torch.isclose(second[key], tensor, rtol=1e-4, atol=5e-6)
        assert close.float().mean() >= 0.99, key
        assert (second[key] - tensor).norm() <= 1e-3 * tensor.norm(), key
    learned = max(tensor.abs().max() for key, tensor in first.items() if key.endswith("lora_up.weight"))
    assert learned > 1e-3  # far above the tolerance


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name)


def test_two_processes_make_what_one_makes_with_twice_the_batch(data: Path, tmp_path: Path) -> None:
    """Also where every second step holds the network to the base."""
    more = "--max_train_epochs 3 --unet_lr 1e-3 --text_encoder_lr 5e-4 --gradient_accumulation_steps 2"
    more += f" --preserve trigger={TRIGGER} class=boy every=2 weight=3"
    alone = run(ALONE, data, tmp_path / "one", "--train_batch_size", "4", *more.split())
    assert alone[0] == 0, alone[2]
    code, said, told = run(TORCHRUN, data, tmp_path / "two", "--train_batch_size", "2", *more.split())
    assert code == 0, told
    assert_close(tmp_path / "one" / "net.safetensors", tmp_path / "two" / "net.safetensors")
    # One of the two talks and writes.
    assert said.splitlines() == [str(tmp_path / "two" / name) for name in net_files(3)]
    assert told.count("base: ") == 1
    assert "batch 2 x 2 processes x 2: 1 step an epoch, 3 steps in 3 epochs" in told
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert len(list((tmp_path / "two" / "logs").rglob("*tfevents*"))) == 1
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "net.metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [row["step"] for row in two if "loss/preservation" in row] == [1, 3]
    assert two[2]["loss/preservation"] == pytest.approx(one[2]["loss/preservation"], rel=1e-3)
    assert two[2]["loss/preservation"] > 0
    assert len(two) == 3


# SGD's step is as its gradient is: what differs in the last digits stays there.
LEARN = (
    "--optimizer_type SGDNesterov --unet_lr 0.3 --gradient_checkpointing --gradient_accumulation_steps 2 "
    "--max_train_epochs 3"
)
# Ways to learn, each with several others that go together.
WAYS = {
    "flow": (
        f"{LEARN} --text_encoder_lr 0.3 --flow_model --timestep_sampling shift --discrete_flow_shift 2 "
        "--ema_decay 0.5 --validation_split 0.3 --early_stop 9"
    ),
    "cached": (
        f"{LEARN} --network_train_unet_only --cache_text_encoder_outputs --timestep_curve 0:1 1000:3 "
        f"--preserve trigger={TRIGGER} class=boy weight=3 --ema_width 0.2 --validation_split 0.3 --early_stop 9"
    ),
    "slider": (
        "--optimizer_type SGDNesterov --unet_lr 1 --text_encoder_lr 1 --gradient_checkpointing "
        "--gradient_accumulation_steps 2 --max_train_steps 2 --ema_decay 0.5 --slider pairs.toml --resolution 32"
    ),
}
PAIRS = """
steps = 3
[[pairs]]
target = "1girl"
positive = "1girl, smile"
strength = 2.0
[[pairs]]
target = "1boy"
positive = "1boy, hat"
"""


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_learn_is_that_of_one_process(way: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.toml").write_text(PAIRS)
    words = WAYS[way].replace("pairs.toml", str(tmp_path / "pairs.toml")).split()
    pictures = None if way == "slider" else data
    alone = run(ALONE, pictures, tmp_path / "one", "--train_batch_size", "4", *words)
    assert alone[0] == 0, alone[2]
    code, _, told = run(TORCHRUN, pictures, tmp_path / "two", "--train_batch_size", "2", *words)
    assert code == 0, told
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    for kind in ("", "-ema") if way == "slider" else ("", "-ema", "-best", "-best-ema"):
        name = f"net{kind}.safetensors"
        assert_close(tmp_path / "one" / name, tmp_path / "two" / name)


def test_the_first_judges_and_all_stop(data: Path, tmp_path: Path) -> None:
    """By the figures of cells, with an optimizer whose weights go to and fro; nothing is learned, so it ends soon."""
    if find_program("lora-grid") is None:
        pytest.skip("lora-grid is not installed beside this Python")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{TRIGGER}, 1girl --s 2 --w 32 --h 32\n", encoding="utf-8")
    words = (
        "--unet_lr 1e-30 --network_train_unet_only --optimizer_type AdamWScheduleFree --max_train_epochs 5"
    )
    words += f" --early_stop 1 --early_stop_by figures --sample_prompts {prompts}"
    code, said, told = run(TORCHRUN, data, tmp_path / "two", "--train_batch_size", "2", *words.split())
    assert code == 0, told
    names = ["net-000001", "net-best", "net-000002", "net"]
    assert said.splitlines() == [str(tmp_path / "two" / f"{name}.safetensors") for name in names]
    assert told.count("stopped early after step") == 1
    assert len(list((tmp_path / "two" / "net-judged").glob("*.png"))) == 32 * 3


def net_files(epochs: int) -> list[str]:
    return [*(f"net-{epoch:06d}.safetensors" for epoch in range(1, epochs)), "net.safetensors"]


def stop_after(steps: int, run: subprocess.Popen[str], out: Path, number: signal.Signals) -> str:
    """Send a signal to all processes of a run after so many steps. It ends and says once how it goes on; what it
    said."""
    metrics = out / "net.metrics.jsonl"
    until = time.monotonic() + TIMEOUT
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < steps:
        assert run.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(run.pid, number)
    _, told = run.communicate(timeout=TIMEOUT)
    assert run.returncode != 0
    assert told.count("the same command goes on from there") == 1
    return told


def go_on_as_if_nothing_was(launcher: list[str], data: Path, stopped: Path, whole: Path, *words: str) -> None:
    """The run that was stopped goes on, and ends with the very network of one that was not."""
    again = run(launcher, data, stopped, *words)
    assert again[0] == 0, again[2]
    assert "going on after step" in again[2]
    calm = run(TORCHRUN, data, whole, *words)
    assert calm[0] == 0, calm[2]
    first, second = (load_file(folder / "net.safetensors") for folder in (stopped, whole))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_interrupted_together_they_go_on_exactly(data: Path, tmp_path: Path) -> None:
    """With cached text, caches on disk, validation and samples; averaged weights go to and fro alike in both."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{TRIGGER}, 1girl --s 2 --d 1\n", encoding="utf-8")
    words = (
        "--max_train_epochs 12 --unet_lr 1e-3 --network_train_unet_only --optimizer_type AdamWScheduleFree"
    )
    words += " --cache_text_encoder_outputs_to_disk --cache_latents_to_disk --validation_split 0.3"
    words += f" --sample_every_n_epochs 6 --sample_prompts {prompts} --cache_dir"
    more = words.split()
    two = [*more, str(tmp_path / "cache"), "--train_batch_size", "1"]
    stopped = start(TORCHRUN, data, tmp_path / "stopped", *two)
    stop_after(5, stopped, tmp_path / "stopped", signal.SIGINT)
    assert (tmp_path / "stopped" / "net.state").exists()
    refused = run(ALONE, data, tmp_path / "stopped", *two)
    assert refused[0] == 2
    assert "processes was 2, is 1" in refused[2]
    go_on_as_if_nothing_was(ACCELERATE, data, tmp_path / "stopped", tmp_path / "whole", *two)
    alone = run(ALONE, data, tmp_path / "one", *more, str(tmp_path / "cache2"), "--train_batch_size", "2")
    assert alone[0] == 0, alone[2]
    assert_close(tmp_path / "one" / "net.safetensors", tmp_path / "whole" / "net.safetensors")
    count = len(list((tmp_path / "cache").rglob("*.safetensors")))
    assert count == len(list((tmp_path / "cache2").rglob("*.safetensors")))


def test_terminated_together_they_save_once(data: Path, tmp_path: Path) -> None:
    """SIGTERM, as a scheduler sends it to every process."""
    words = ["--max_train_steps", "100000", "--unet_lr", "1e-3", "--network_train_unet_only"]
    stopped = start(TORCHRUN, data, tmp_path, *words)
    told = stop_after(3, stopped, tmp_path, signal.SIGTERM)
    assert "lora-train: terminated" in told
    assert (tmp_path / "net.state").exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_when_one_is_killed_the_first_saves_and_the_same_command_goes_on(data: Path, tmp_path: Path) -> None:
    words = [
        "--max_train_epochs",
        "8",
        "--unet_lr",
        "1e-3",
        "--network_train_unet_only",
        "--train_batch_size",
        "2",
    ]
    killed = start(TORCHRUN, data, tmp_path / "killed", *words)
    metrics = tmp_path / "killed" / "net.metrics.jsonl"
    until = time.monotonic() + TIMEOUT
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 3:
        assert killed.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    _, second = processes_of(tmp_path / "killed")
    os.kill(second, signal.SIGKILL)
    _, told = killed.communicate(timeout=TIMEOUT)
    assert killed.returncode != 0
    (line,) = [line for line in told.splitlines() if "lora-train: " in line]
    assert line.startswith("lora-train: error: another process of this run has ended; ")
    assert "the same command goes on from there; saved: " in line
    go_on_as_if_nothing_was(TORCHRUN, data, tmp_path / "killed", tmp_path / "whole", *words)


def test_pictures_are_shared_out_and_none_is_drawn_twice(tmp_path: Path) -> None:
    """A network that cannot be read is one process's matter: the others draw theirs, and the status is that of all."""
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no network")
    words = [*TORCHRUN[:-1], "lora-sample", str(broken), "--base", "demo"]
    words += ["--prompt", "1girl", "--y", "seed:1,2", "--steps", "1", "--device", "cpu", "--json"]
    words += ["--output-dir", str(tmp_path / "drawn")]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=TIMEOUT,
    )
    assert done.returncode != 0
    assert "2 of 4 pictures were left out" in done.stderr
    drawn = sorted(str(path) for path in (tmp_path / "drawn").iterdir())
    assert len(drawn) == 2
    assert sorted(json.loads(line)["path"] for line in done.stdout.splitlines()) == drawn


def test_what_is_wrong_everywhere_is_told_once(data: Path, tmp_path: Path) -> None:
    code, _, told = run(TORCHRUN, data, tmp_path / "out", "--device", "cuda:1")
    assert code != 0
    lines = [line for line in told.splitlines() if line.startswith("lora-train: error")]
    assert lines == [
        "lora-train: error: device: 2 processes cannot all have cuda:1; leave it out, each takes its own card"
    ]
    assert "super().main" not in told  # a traceback of ours; the launcher has one of its own


def test_a_picture_that_only_one_process_reads_is_named(data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "data" / "1_broken"
    broken.mkdir(parents=True)
    for path in (data / f"1_{TRIGGER}").iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    picture = broken / "001.png"
    picture.write_bytes(picture.read_bytes()[:-200])
    code, _, told = run(TORCHRUN, broken.parent, tmp_path / "out")
    assert code != 0
    lines = [line for line in told.splitlines() if "not a whole picture" in line]
    assert len(lines) == 1
    assert lines[0].startswith("lora-train: process 1: error: ")
    assert "001.png: " in lines[0]
    assert "unexpected" not in told
