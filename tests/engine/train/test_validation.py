"""Validation: what is kept from training, what is measured, and that training does not notice."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
Image = pytest.importorskip("PIL.Image")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.datasets.scan import Picture, scan, split_off  # noqa: E402
from lorapipe_engine.datasets.spec import DatasetSpec  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.pictures.buckets import BucketRule, Placement  # noqa: E402
from lorapipe_engine.settings import DataSettings, LossSettings  # noqa: E402
from lorapipe_engine.train.objective.diffusion import Diffusion  # noqa: E402
from support.called import status_of  # noqa: E402
from support.stopping import stopped_after  # noqa: E402

PLACE = Placement((64, 64), (64, 64), (0, 0))


def specs(shares: list[float], seed: int | None = None) -> list[DatasetSpec]:
    rule = BucketRule(resolution=(64, 64), enabled=False)
    return [
        DatasetSpec(subsets=(), buckets=rule, validation_split=share, validation_seed=seed)
        for share in shares
    ]


@settings(deadline=None)
@given(st.integers(1, 30), st.lists(st.floats(0, 0.9), min_size=1, max_size=3), st.integers(0, 5))
def test_what_is_measured_with_is_never_trained(count: int, shares: list[float], seed: int) -> None:
    """The same files in several datasets, each with a share of its own."""
    pictures = [
        Picture(Path(f"{name}.png"), "", 3, PLACE, (64, 64), number)
        for number in range(len(shares))
        for name in range(count)
    ]
    trained, kept = split_off(pictures, specs(shares), pictures, seed)
    assert not {row.path for row in trained} & {row.path for row in kept}
    assert all(row.repeats == 1 for row in kept)
    sizes = Counter(row.dataset for row in kept)
    assert [sizes[number] for number in range(len(shares))] == [
        min(round(count * share), count - 1) for share in shares
    ]
    assert [row for row in pictures if row in trained] == trained
    assert split_off(pictures, specs(shares), pictures, seed) == (trained, kept)
    own = split_off(pictures, specs(shares, seed), pictures, seed + 1)
    assert own == (trained, kept)


def test_seeds_choose_others() -> None:
    pictures = [Picture(Path(f"{name}.png"), "", 1, PLACE, (64, 64)) for name in range(30)]
    assert len({tuple(split_off(pictures, specs([0.2]), pictures, seed)[1]) for seed in range(6)}) > 3


def test_timesteps_are_the_inner_ones() -> None:
    assert Diffusion(LossSettings()).validation_times(4) == [200, 400, 600, 800]
    assert Diffusion(LossSettings(min_timestep=100, max_timestep=600)).validation_times(4) == [
        200,
        300,
        400,
        500,
    ]
    assert Diffusion(LossSettings(min_timestep=7, max_timestep=7)).validation_times(4) == [7]


# ------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    draw_concept(root, "mirelune", pictures=8, repeats=1, seed=1)
    return root


def train(data: Path, out: Path, *more: object, code: int = 0) -> Path:
    words = "--base demo --resolution 64 --device cpu --network_dim 2 --max_token_length 75 --output_name net --quiet"
    words += " --save_precision float --learning_rate 1e-2 --network_dropout 0.2 --shuffle_caption --flip_aug"
    words += " --max_train_epochs 2 --multires_noise_iterations 2 --gradient_accumulation_steps 2"
    places = ["--train_data_dir", data, "--output_dir", out]
    assert status_of(lora_train, *words.split(), *places, *more) == code
    return out


def curve(out: Path, kind: str) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (out / "net.metrics.jsonl").read_text().splitlines()]
    tag = f"loss/validation/{kind}_average"
    return [(row["step"], row[tag]) for row in rows if tag in row]


SPLIT = ("--validation_split", "0.25", "--validation_seed", "3")


def test_training_is_that_of_the_same_pictures_without_validation(pictures: Path, tmp_path: Path) -> None:
    with_it = train(pictures, tmp_path / "with", *SPLIT, "--validate_every_n_steps", "1")
    dataset = scan(DataSettings(train_data_dir=pictures, validation_split=0.25, validation_seed=3))
    alone = tmp_path / "alone" / "1_mirelune"
    alone.mkdir(parents=True)
    for row in dataset.pictures:
        for path in (row.path, row.path.with_suffix(".txt")):
            shutil.copy(path, alone)
    without = train(tmp_path / "alone", tmp_path / "without")
    for name in ("net-000001.safetensors", "net.safetensors"):
        one, two = load_file(with_it / name), load_file(without / name)
        assert all(torch.equal(one[key], two[key]) for key in one)
    found = curve(with_it, "step")
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6]
    assert len({loss for _, loss in found}) == 6
    with open_tensors(with_it / "net.safetensors") as file:
        assert (file.metadata["ss_num_train_images"], file.metadata["ss_num_validation_images"]) == ("6", "2")


def test_a_network_that_learns_nothing_has_a_flat_curve(pictures: Path, tmp_path: Path) -> None:
    out = train(pictures, tmp_path, *SPLIT, "--unet_lr", "1e-30", "--text_encoder_lr", "1e-30")
    (first, one), (last, two) = curve(out, "epoch")
    assert (first, last) == (3, 6)
    assert one == two > 0
    board = list((out / "logs").glob("*/network_train/events.out.tfevents.*"))
    assert b"loss/validation/epoch_divergence" in board[0].read_bytes()


def test_the_curve_of_every_timestep_means_the_whole(pictures: Path, tmp_path: Path) -> None:
    out = train(pictures, tmp_path, *SPLIT)
    rows = [json.loads(line) for line in (out / "net.metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss/validation/epoch_average" in row]
    for row in rows:
        parts = [row[f"loss/validation/epoch_at_{time}"] for time in (200, 400, 600, 800)]
        assert sum(parts) / 4 == pytest.approx(row["loss/validation/epoch_average"], rel=1e-5)
        assert len(set(parts)) == 4


def test_it_stops_where_nothing_gets_better(
    pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A network that learns nothing is at its best after the first epoch. Stopped by hand before, it ends the same."""
    words = [*SPLIT, "--unet_lr", "1e-30", "--text_encoder_lr", "1e-30", "--max_train_epochs", "9"]
    words += ["--early_stop", "2", "--state_interval", "0"]
    out = train(pictures, tmp_path / "calm", *words)
    assert [step for step, _ in curve(out, "epoch")] == [3, 6, 9]
    names = sorted(path.name for path in out.glob("*.safetensors"))
    kinds = ("-000001", "-000002", "-000003", "-best", "")
    assert names == [f"net{kind}.safetensors" for kind in kinds]
    best, first = load_file(out / "net-best.safetensors"), load_file(out / "net-000001.safetensors")
    assert all(torch.equal(best[key], first[key]) for key in best)
    with open_tensors(out / "net-best.safetensors") as file:
        assert (file.metadata["ss_epoch"], file.metadata["ss_steps"]) == ("1", "3")
    assert not (out / "net.state").exists()
    with stopped_after(7):
        train(pictures, tmp_path / "again", *words, code=130)
    again = train(pictures, tmp_path / "again", *words)
    assert curve(again, "epoch") == curve(out, "epoch")
    assert "net-best.safetensors" in capfd.readouterr().out


def test_the_best_is_the_lowest_of_all(pictures: Path, tmp_path: Path) -> None:
    out = train(
        pictures, tmp_path, *SPLIT, "--early_stop", "9", "--max_train_epochs", "4", "--network_dropout", "0"
    )
    losses = [loss for _, loss in curve(out, "epoch")]
    epoch = losses.index(min(losses)) + 1
    saved = out / ("net.safetensors" if epoch == 4 else f"net-{epoch:06d}.safetensors")
    best, same = load_file(out / "net-best.safetensors"), load_file(saved)
    assert all(torch.equal(best[key], same[key]) for key in best)


def test_stopping_early_needs_something_to_measure_with(
    pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(pictures, tmp_path, "--early_stop", "2", code=2)
    told = capfd.readouterr().err
    assert told.startswith(
        "lora-train: error: early_stop: goes by the validation loss, and no picture is kept"
    )
    assert told.count("\n") == 1
    # So small a share of eight pictures is none; what is told keeps one.
    train(pictures, tmp_path, "--early_stop", "2", "--validation_split", "0.05", code=2)
    told = capfd.readouterr().err
    share = told.partition("--validation_split ")[2].partition(",")[0]
    assert float(share) > 0.05
    train(pictures, tmp_path, "--early_stop", "2", "--validation_split", share, "--dry_run")


def test_only_so_many_batches(pictures: Path, tmp_path: Path) -> None:
    few = train(pictures, tmp_path / "few", *SPLIT, "--max_validation_steps", "1")
    many = train(pictures, tmp_path / "many", *SPLIT)
    assert curve(few, "epoch") != curve(many, "epoch")
