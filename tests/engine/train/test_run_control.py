"""States that are kept, curves, formats, and runs that come to a bad end, on the real command line."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")

from safetensors.torch import load_file  # noqa: E402

from lorapipe_demo.scene import TRIGGER  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.errors import ProblemFound  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.networks.metadata import parse_metadata  # noqa: E402
from lorapipe_engine.train.results import results  # noqa: E402
from lorapipe_engine.train.results.loss_watch import follow, is_calm  # noqa: E402
from lorapipe_engine.train.results.state import State  # noqa: E402
from support.called import status_of  # noqa: E402
from support.dataset import draw_data  # noqa: E402

FIXED = (
    "--base demo --resolution 64 --max_token_length 75 --device cpu --output_name net --network_dim 2 "
    "--lr_scheduler constant --unet_lr 1e-2 --text_encoder_lr 5e-3 --save_precision float"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory, pictures=3)


def run(data: Path, out: Path, *more: str) -> int:
    return status_of(lora_train, *FIXED.split(), "--train_data_dir", data, "--output_dir", out, *more)


def same(first: Path, second: Path) -> None:
    one, two = load_file(first), load_file(second)
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key]), key


# ------------------------------------------------------------ states


@pytest.fixture(scope="module")
def with_states(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four epochs with their states, of which the last two are kept; samples after the second and fourth."""
    out = tmp_path_factory.mktemp("states")
    prompts = out / "prompts.txt"
    prompts.write_text(f"({TRIGGER}:1.2), 1girl --s 2 --w 64 --h 64\n")
    more = "--max_train_epochs 4 --save_state --save_last_n_epochs_state 2 --sample_every_n_epochs 2"
    notes = ["--metadata_usage_hint", "say her name", "--training_comment", "mine", "--log_prefix", "net_"]
    notes += ["--metadata_trigger_phrase", TRIGGER]
    assert run(data, out, *more.split(), "--sample_prompts", str(prompts), *notes) == 0
    return out


def test_states_beside_networks(with_states: Path) -> None:
    assert sorted(path.name for path in with_states.glob("net*.s*")) == [
        "net-000001.safetensors",
        "net-000002.safetensors",
        "net-000002.state",
        "net-000003.safetensors",
        "net-000003.state",
        "net-end.state",
        "net.safetensors",
    ]


def test_a_longer_run_from_a_state_equals_one_that_was_as_long(
    with_states: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path / "whole", "--max_train_epochs", "6") == 0
    more = ["--max_train_epochs", "6", "--resume", str(with_states / "net-end.state")]
    assert run(data, tmp_path / "longer", *more) == 0
    same(tmp_path / "whole" / "net.safetensors", tmp_path / "longer" / "net.safetensors")
    told = capsys.readouterr().err
    assert "going on after step 12 of 18" in told
    assert "changed: max_train_epochs was 4, is 6" in told


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--resume", "END"], "give more --max_train_epochs"),
        (["--resume", "END", "--network_dim", "4", "--max_train_epochs", "6"], "network_dim was 2, is 4"),
        (["--resume", "FOLDER", "--max_train_epochs", "6"], "is a folder, as sd-scripts writes states"),
    ],
)
def test_states_that_cannot_be_gone_on_with(
    more: list[str],
    told: str,
    with_states: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"END": str(with_states / "net-end.state"), "FOLDER": str(with_states)}
    assert run(data, tmp_path, "--max_train_epochs", "4", *(places.get(word, word) for word in more)) == 2
    assert told in capsys.readouterr().err.splitlines()[-1]


# ------------------------------------------------------------ records


def test_curves_have_the_names_of_sd_scripts(with_states: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = with_states.glob("logs/net_*/network_train")
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    want = {"loss/current", "loss/average", "loss/epoch_average", "lr/unet", "lr/textencoder"}
    want |= {f"norm/{kind}/{part}" for kind in ("change", "step") for part in ("unet", "textencoder")}
    assert want <= set(tags["scalars"])
    assert tags["images"] == ["sample/00"]
    text = events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "max_train_epochs = 4" in text
    rows = metrics(with_states)
    losses = [row["loss/current"] for row in rows]
    assert [row["loss/average"] for row in rows] == pytest.approx(
        [math.fsum(losses[max(0, n - 3) : n]) / min(n, 3) for n in range(1, 13)]
    )
    epochs = events.Scalars("loss/epoch_average")
    assert [row.step for row in epochs] == [1, 2, 3, 4]
    assert [row.value for row in epochs] == pytest.approx(
        [math.fsum(losses[n : n + 3]) / 3 for n in (0, 3, 6, 9)]
    )


def test_parts_are_measured_apart(with_states: Path) -> None:
    """With AdamW a step moves each value by about the rate; the change grows from nothing."""
    rows = [row for row in metrics(with_states) if "norm/step/unet" in row]
    assert [row["step"] for row in rows] == [1, 11]
    assert rows[0]["norm/step/unet"] == pytest.approx(
        1e-2 / math.sqrt(2), rel=0.2
    )  # lora_down has no gradient yet
    assert 0 < rows[1]["norm/step/textencoder"] < 5e-3 * 1.5
    for part in ("unet", "textencoder"):
        assert rows[1][f"norm/change/{part}"] > rows[0][f"norm/change/{part}"] > 0


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "net.metrics.jsonl").read_text().splitlines()]


def test_what_the_user_says_of_the_file(with_states: Path) -> None:
    with open_tensors(with_states / "net.safetensors") as file:
        found = parse_metadata(file.metadata)
    assert (found["modelspec.usage_hint"], found["ss_training_comment"]) == ("say her name", "mine")
    assert found["modelspec.trigger_phrase"] == TRIGGER


def test_a_pickle_for_old_programs(data: Path, tmp_path: Path) -> None:
    for kind in ("pt", "safetensors"):
        more = ["--save_model_as", kind, "--max_train_steps", "1", "--save_precision", "bf16"]
        assert run(data, tmp_path / kind, *more) == 0
    found = torch.load(tmp_path / "pt" / "net.pt", weights_only=True)
    want = load_file(tmp_path / "safetensors" / "net.safetensors")
    assert found.keys() == want.keys()
    assert all(torch.equal(found[key], want[key]) and found[key].dtype == want[key].dtype for key in want)
    again = ("--save_model_as", "pt", "--max_train_steps", "1")
    assert run(data, tmp_path / "pt", *again) == 1  # not replaced unasked


def test_no_wandb_is_told_at_once(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        import wandb  # noqa: F401
    except ImportError:
        assert run(data, tmp_path, "--log_with", "wandb") == 2
        assert "pip install wandb" in capsys.readouterr().err
    else:
        os.environ["WANDB_MODE"] = "offline"
        assert run(data, tmp_path, "--log_with", "all", "--max_train_steps", "1") == 0
        assert list((tmp_path / "logs").glob("*/network_train/wandb/offline-run-*"))


# ------------------------------------------------------------ bad ends


def test_an_exploding_loss_stops_the_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight calm epochs by a piecewise curve, then a rate far too high."""
    rates = ["--lr_scheduler", "piecewise_constant", "--lr_scheduler_args", "step_rules=1:24,300"]
    more = ["--max_train_epochs", "60", *rates, "--optimizer_type", "SGDNesterov", "--state_interval", "0"]
    assert run(data, tmp_path, *more, "--max_grad_norm", "0", "--unet_lr", "1") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the loss has exploded" in error or "the loss is nan" in error
    assert "lower the learning rate" in error
    assert f"the last good state is {tmp_path / 'net.state'}" in error
    assert str(tmp_path / "net-000008.safetensors") in error
    steps = len(metrics(tmp_path))
    assert 24 < steps < 120
    with open_tensors(tmp_path / "net.state") as file:
        assert json.loads(file.metadata["lorapipe.state"])["state"]["step"] < steps
        worst = max(abs(file.read(name)).max() for name in file.tensors if name.startswith("network."))
    assert worst < 100


def test_a_loss_that_is_no_number_stops_the_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path, "--unet_lr", "1e38", "--max_train_epochs", "3") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the loss is nan" in error or "the loss is inf" in error
    assert "no state was written yet" in error


@pytest.mark.parametrize("seed", range(30))
def test_healthy_losses_never_stop_a_run(seed: int) -> None:
    """Losses as those of single pictures at random timesteps are: over three decades, with rare ones above 1."""
    draw = random.Random(seed)
    state = State()
    spread = draw.uniform(0.3, 1.8)
    middle = draw.choice([0.003, 0.02, 0.1, 0.4])
    for _ in range(3000):
        state.step += 1
        follow(
            state, min(middle * math.exp(draw.gauss(0, spread)), 3.0), steps_per_epoch=draw.choice([5, 400])
        )
        assert len(state.recent) <= 400


def test_an_explosion_is_seen_within_twenty_steps() -> None:
    state = State()
    for _ in range(100):
        state.step += 1
        follow(state, 0.1, steps_per_epoch=50)
    assert is_calm(state)
    seen = ""
    for _ in range(20):
        state.step += 1
        try:
            follow(state, 100.0, steps_per_epoch=50)
        except ProblemFound as error:
            seen = str(error)
            break
        assert not is_calm(state)
    assert "the loss has exploded" in seen


def test_out_of_memory_tells_what_to_change(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorapipe_engine.train import loop

    def full(*args: object) -> tuple[float, float]:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 1.25 GiB. GPU 0 has a total capacity of 23.65 GiB of which 12 MiB "
            "is free."
        )

    monkeypatch.setattr(loop, "take_step", full)
    assert run(data, tmp_path, "--train_batch_size", "2", "--network_dim", "16") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "the GPU ran out of memory (1.25 GiB more were wanted, 23.65 GiB are there)" in error
    for word in (
        "--gradient_checkpointing",
        "--train_batch_size 1 --gradient_accumulation_steps 2 (now 2 and 1",
        "--network_dim 8 (now 16",
        "--network_train_unet_only",
    ):
        assert word in error


def test_out_of_memory_on_the_cpu(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorapipe_engine.train import loop

    monkeypatch.setattr(loop, "take_step", lambda *args: torch.empty(1 << 60))
    assert run(data, tmp_path, "--network_train_unet_only") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "this machine ran out of memory" in error
    assert "--network_train_unet_only" not in error


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with little room."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("needs leave to mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_loses_nothing(
    small_disk: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where the state goes then
    more = ["--max_train_epochs", "4", "--logging_dir", str(tmp_path / "logs"), "--save_precision", "fp16"]
    assert run(data, tmp_path / "calm", *more) == 0
    capsys.readouterr()
    assert run(data, small_disk, *more) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"{small_disk / 'net-000002.safetensors'}: needs" in error
    (rescued,) = tmp_path.glob("lorapipe-*/net.state")
    assert f"--resume {rescued}" in error
    saved = sorted(small_disk.glob("net*.safetensors"))
    assert 0 < len(saved) < 4
    for path in saved:
        same(path, tmp_path / "calm" / path.name)
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert run(data, small_disk, *more, "--resume", str(rescued)) == 0
    for path in (tmp_path / "calm").glob("net*.safetensors"):
        same(small_disk / path.name, path)


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_a_signal_right_behind_the_rename_loses_nothing(
    suffix: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The network has its name already, and its run has not heard of it yet."""
    real = results.write_network

    def interrupted(path: Path, *words: Any, **more: Any) -> None:
        monkeypatch.setattr(results, "write_network", real)
        real(path, *words, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(results, "write_network", interrupted)
    words = ["--max_train_steps", "3", "--save_every_n_steps", "1", "--save_model_as", suffix]
    assert run(data, tmp_path / "stopped", *words) == 130
    assert "stopped after step 1 of 3; the same command goes on from there" in capsys.readouterr().err
    assert (tmp_path / "stopped" / "net.state").exists()
    assert run(data, tmp_path / "stopped", *words) == 0
    # What another program has put there is still kept.
    (tmp_path / "other").mkdir()
    there = tmp_path / "other" / f"net-step00000001.{suffix}"

    def beaten(path: Path, *words: Any, **more: Any) -> None:
        there.write_bytes(b"precious")
        real(path, *words, **more)

    monkeypatch.setattr(results, "write_network", beaten)
    assert run(data, tmp_path / "other", *words) == 1
    assert "exists already" in capsys.readouterr().err
    assert there.read_bytes() == b"precious"
