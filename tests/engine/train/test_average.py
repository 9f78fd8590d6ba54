"""The average of a network while it trains: its weights, its files, a run that goes on, and what it equals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")

from safetensors.torch import load_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from lorapipe_demo.scene import TRIGGER  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.nn.adapters.lora import Lora  # noqa: E402
from lorapipe_engine.nn.attach import Network  # noqa: E402
from lorapipe_engine.train.network.average import NetworkAverage, exponent_of  # noqa: E402
from lorapipe_merge.cli import lora_merge  # noqa: E402
from lorapipe_merge.networks.average import Average  # noqa: E402
from support.called import status_of  # noqa: E402
from support.dataset import draw_data  # noqa: E402
from support.stopping import stopped_after  # noqa: E402

pytestmark = pytest.mark.torch


def network() -> Network:
    torch.manual_seed(0)
    return Network({"one": Lora(nn.Linear(4, 6), 2, 1.0)}, {"one": "unet"})


@pytest.mark.parametrize(
    ("chosen", "same"),
    [({"decay": 0.8}, Average("ema", 0.8)), ({"width": 0.1}, Average("power", 0.1))],
)
def test_steps_weigh_what_the_merge_gives_saves(chosen: dict[str, float], same: Average) -> None:
    net = network()
    values = net.groups["unet"].parameter
    average = NetworkAverage(net, **chosen)
    seen = []
    for step in range(1, 8):
        values.data.normal_()
        seen.append(values.detach().clone())
        average.after_step(step)
    wanted = sum(weight * one.double() for weight, one in zip(same.weights(7), seen, strict=True))
    with average.in_place():
        torch.testing.assert_close(values.detach().double(), wanted, rtol=1e-5, atol=1e-6)
    assert torch.equal(values, seen[-1])


@pytest.mark.parametrize("width", [0.001, 0.05, 0.2, 0.288])
def test_the_exponent_is_the_root(width: float) -> None:
    power = exponent_of(width)
    inverse = width**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    assert power == pytest.approx(max(root.real for root in roots if abs(root.imag) < 1e-9), rel=1e-6)


# ------------------------------------------------------------------------------------------------- runs

FIXED = (
    "--base demo --resolution 64 --max_token_length 75 --device cpu --output_name net --save_precision float "
    "--network_dim 2 --unet_lr 5e-3 --network_train_unet_only --max_train_steps 5 --save_every_n_steps 1 --quiet "
    "--lr_scheduler constant --state_interval 0"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory, pictures=2)


def train(data: Path, out: Path, *more: object) -> int:
    return status_of(lora_train, *FIXED.split(), "--train_data_dir", data, "--output_dir", out, *more)


@pytest.fixture(scope="module")
def averaged(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("averaged")
    # The downs are frozen there, so that the change is linear in what is trained.
    assert train(data, out, "--algorithm", "lora_fa", "--ema_decay", "0.7") == 0
    return out


def change(path: Path) -> dict[str, Tensor]:
    """The dense changes of a file, by module."""
    tensors = load_file(path)
    changes = {}
    for name in {key.partition(".")[0] for key in tensors}:
        up, down = (tensors[f"{name}.lora_{side}.weight"].flatten(1).double() for side in ("up", "down"))
        changes[name] = up @ down * float(tensors[f"{name}.alpha"]) / len(down)
    return changes


def test_it_is_what_the_merge_makes_of_all_saves(averaged: Path, tmp_path: Path) -> None:
    saves = [averaged / f"net-step{step:08d}.safetensors" for step in range(1, 5)]
    out = tmp_path / "merged.safetensors"
    words = ["--average", "ema:0.7", "--mode", "concat", "--save_precision", "float", "-o", out]
    assert status_of(lora_merge, "--networks", *saves, averaged / "net.safetensors", *words) == 0
    one, other, last = (
        change(path) for path in (averaged / "net-ema.safetensors", out, averaged / "net.safetensors")
    )
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-7)
    assert any((one[name] - last[name]).norm() > 0.1 * last[name].norm() for name in one)


def test_its_files_say_what_they_are(averaged: Path) -> None:
    names = {path.name for path in averaged.glob("*.safetensors")}
    steps = [f"net-step{step:08d}" for step in range(1, 5)]
    assert names >= {f"{name}{kind}.safetensors" for name in [*steps, "net"] for kind in ("", "-ema")}
    with (
        open_tensors(averaged / "net-ema.safetensors") as one,
        open_tensors(averaged / "net.safetensors") as other,
    ):
        assert (one.metadata["ss_ema_decay"], one.metadata["ss_steps"]) == ("0.7", "5")
        assert "ss_ema_decay" not in other.metadata


def test_the_network_is_that_of_a_run_without(averaged: Path, data: Path, tmp_path: Path) -> None:
    assert train(data, tmp_path, "--algorithm", "lora_fa") == 0
    one, other = (load_file(folder / "net.safetensors") for folder in (averaged, tmp_path))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_it_goes_on_bit_for_bit_and_is_drawn_with(data: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{TRIGGER} --s 2 --d 1\n", encoding="utf-8")
    words = ["--ema_width", "0.2", "--sample_prompts", prompts, "--sample_every_n_steps", "5"]
    calm, again = tmp_path / "calm", tmp_path / "again"
    assert train(data, calm, *words) == 0
    with stopped_after(3):
        assert train(data, again, *words) == 130
    assert train(data, again, *words, "--sample_ema") == 0
    for name in ("net", "net-ema"):
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (calm, again))
        assert all(torch.equal(one[key], other[key]) for key in one)
    drawn = [(folder / "sample" / "net_000005_00.png").read_bytes() for folder in (calm, again)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ema_decay", "0.9", "--ema_width", "0.1"], "are two kinds of average"),
        (["--ema_decay", "0.9", "--optimizer_type", "AdamWScheduleFree"], "averages by itself"),
        (["--ema_decay", "1"], "ema_decay"),
    ],
)
def test_what_means_nothing_is_refused(
    words: list[str], told: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path, *words) == 2
    assert told in capfd.readouterr().err
