"""``lora-train --choose``: the saved networks drawn and laid out by the programs beside this Python, and what is said
before when that cannot be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")

import lorapipe_demo
from lorapipe_demo.concept import draw_concept
from lorapipe_demo.scene import TRIGGER
from lorapipe_engine.command.process.programs import find_program, run_program
from lorapipe_engine.datasets.scan import Dataset, scan
from lorapipe_engine.errors import OutputError
from lorapipe_engine.settings import (
    DataSettings,
    LossSettings,
    ModelSettings,
    NetworkSettings,
    OptimizerSettings,
    RunSettings,
    TrainSettings,
)
from lorapipe_engine.train import choose
from lorapipe_engine.train.plan import Length
from lorapipe_engine.train.results.numbering import planned_networks
from lorapipe_engine.train.sample.prompts import Prompt
from lorapipe_engine.train.session import check_cheaply

ENCODER = Path(lorapipe_demo.__file__).parent / "assets" / "encoder.onnx"
pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(
        find_program("lora-grid") is None, reason="lora-grid is not installed beside this Python"
    ),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    draw_concept(root, TRIGGER, pictures=3, repeats=1, seed=3)
    return root


@pytest.fixture(scope="module")
def dataset(data: Path) -> Dataset:
    return scan(DataSettings(train_data_dir=data, resolution=(64, 64)), 1)


def settings_of(run: RunSettings, **model: object) -> TrainSettings:
    return TrainSettings(
        model=ModelSettings(pretrained_model_name_or_path="demo", clip_skip=2, **model),  # type: ignore[arg-type]
        data=DataSettings(resolution=(64, 72)),
        network=NetworkSettings(
            base_weights=(Path("a.safetensors"), Path("b.safetensors")), base_weights_multiplier=(0.5,)
        ),
        optimizer=OptimizerSettings(),
        loss=LossSettings(),
        run=run,
    )


def train(data: Path, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    fixed = (
        "--base demo --resolution 64 --max_token_length 75 --device cpu --network_dim 2 --max_train_steps 2"
    )
    code = "from lorapipe_engine.cli import train_main; train_main()"
    places = ["--train_data_dir", str(data), "--output_dir", str(out), "--output_name", "mina"]
    return subprocess.run(
        [sys.executable, "-c", code, *fixed.split(), "--choose", *places, *words],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_saved_networks_are_drawn_laid_out_and_compared(data: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{TRIGGER}, 1girl, tea --w 32 --h 40 --s 1 --l 3 --n bad\na red car\n")
    done = train(data, tmp_path / "out", "--save_every_n_steps", "1", "--sample_prompts", str(prompts))
    assert done.returncode == 0, done.stderr
    # stdout has the networks and nothing else.
    names = ["mina-step00000001.safetensors", "mina.safetensors"]
    assert [Path(line).name for line in done.stdout.splitlines()] == names
    before, _, after = done.stderr.partition("trained in")
    assert f"choose: the trigger is '{TRIGGER}', in 3 of 3 captions an epoch" in before
    assert "sample_prompts does nothing" not in before
    # Two steps change next to nothing, and that is what is said.
    assert "cannot tell: all 2 that pass the gates lie within the interval of the highest" in after
    assert "8 pictures of the concept each" in after
    out = tmp_path / "out"
    assert (out / "mina-choose.png").stat().st_size > 1000
    page = (out / "mina-choose.html").read_text()
    assert "mina-step00000001" in page
    cells = [json.loads(line) for line in (out / "mina-choose" / "cells.jsonl").read_text().splitlines()]
    assert {cell["file"] for cell in cells} == {"None", "mina-step00000001", "mina"}
    told = ("size", "steps", "cfg", "negative", "clip_skip", "base")
    assert {tuple(cell[name] for name in told) for cell in cells} == {("32x40", 1, 3.0, "bad", 2, "demo")}
    assert {cell["prompt"] for cell in cells} == {f"{TRIGGER}, 1girl, tea", "1girl, tea", "a red car"}


def test_a_program_that_is_not_there_is_said(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "PACKAGES", {"lora-nothing": "lorapipe-nothing"})
    settings = settings_of(RunSettings(output_dir=tmp_path, choose=True), device="cpu")
    told = (
        "choose: lora-nothing is not installed beside this Python (pip install 'lorapipe-nothing' in the repository), "
        "so no epoch will be named"
    )
    settings = replace(settings, network=NetworkSettings())
    assert told in check_cheaply(settings)[1]
    assert told not in check_cheaply(replace(settings, run=RunSettings(output_dir=tmp_path)))[1]
    assert choose.plan_choosing(settings, dataset, Length(3, 3, 4, 12), [], print) is None


def test_one_network_and_no_trigger_are_said(dataset: Dataset, tmp_path: Path) -> None:
    said: list[str] = []
    run = RunSettings(
        output_dir=tmp_path, choose=True, save_every_n_epochs=None, metadata_trigger_phrase=TRIGGER
    )
    planned = choose.plan_choosing(settings_of(run), dataset, Length(3, 3, 4, 12), [], said.append)
    assert planned is not None
    assert "--best" not in planned.layout
    assert "one network will be saved" in said[-1]
    bare = Dataset(dataset.pictures[:1], dataset.folders, dataset.specs)
    other = [Dataset(tuple(type(row)(row.path, "1girl, solo", 1, row.placement, row.size) for row in bare.pictures),
                     bare.folders, bare.specs)]  # fmt: skip
    planned = choose.plan_choosing(
        settings_of(RunSettings(output_dir=tmp_path)), other[0], Length(3, 3, 4, 12), [], said.append
    )
    assert planned is not None
    assert "--best" not in planned.layout
    assert "no word is common enough" in said[-1]


def test_what_lora_sample_is_told(dataset: Dataset, tmp_path: Path) -> None:
    run = RunSettings(output_dir=tmp_path, output_name="mina", sample_sampler="euler_a", overwrite=True)
    planned = choose.plan_choosing(
        settings_of(run, vae="v.pt"), dataset, Length(3, 3, 30, 90), [], list[str]().append
    )
    assert planned is not None
    for line in (
        'base = "demo"', 'vae = "v.pt"', "clip_skip = 2", 'size = "64x72"', 'sampler = "euler_a"', "overwrite = true",
        'network = ["a.safetensors:0.5", "b.safetensors:1"]', 'sheet = ["seed:-1--1 [4]"]',
    ):  # fmt: skip
        assert line in planned.plan.splitlines()
    assert "--force" in planned.layout
    assert len(planned.networks) == 30
    (tmp_path / "mina-choose.html").touch()
    with pytest.raises(OutputError, match=r"mina-choose\.html exists already; give --overwrite"):
        choose.plan_choosing(
            settings_of(RunSettings(output_dir=tmp_path, output_name="mina")),
            dataset,
            Length(3, 3, 4, 12),
            [],
            print,
        )


def test_a_sampler_that_lora_sample_lacks_is_said_once(dataset: Dataset, tmp_path: Path) -> None:
    said: list[str] = []
    run = RunSettings(output_dir=tmp_path, sample_sampler="nowhere")
    prompts = [Prompt(text=f"{TRIGGER}, 1girl, tea", sampler="nowhere")]
    planned = choose.plan_choosing(settings_of(run), dataset, Length(3, 3, 4, 12), prompts, said.append)
    assert planned is not None
    assert [line for line in said if "sampler" in line] == [
        "note: choose: lora-sample has no sampler 'nowhere', so it draws with its own"
    ]
    assert "sampler = " not in planned.plan
    run = replace(run, sample_sampler="euler_a")
    planned = choose.plan_choosing(settings_of(run), dataset, Length(3, 3, 4, 12), prompts, said.append)
    assert planned is not None
    assert said[-1].endswith("has no sampler 'nowhere', so it draws with euler_a")
    assert 'sampler = "euler_a"' in planned.plan.splitlines()


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of her that are not trained on."""
    return draw_concept(tmp_path_factory.mktemp("held"), TRIGGER, pictures=4, repeats=1, seed=5)


def test_a_model_to_compare_by_goes_on_to_lora_grid(dataset: Dataset, held_out: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    shutil.copy(ENCODER, tmp_path / "mine.onnx")
    (tmp_path / "ccip").mkdir()
    for name in ("model_feat.onnx", "model_metrics.onnx"):
        shutil.copy(ENCODER, tmp_path / "ccip" / name)
    for given, words in (
        ("demo", ["--encoder", "demo"]),
        (f"{tmp_path}/mine.onnx", ["--encoder", f"{tmp_path}/mine.onnx"]),
        (f"dino={tmp_path}/mine.onnx", ["--dino", f"{tmp_path}/mine.onnx"]),
        (f"clip={tmp_path}/mine.onnx", ["--clip", f"{tmp_path}/mine.onnx"]),
        (f"ccip={tmp_path}/ccip", ["--ccip", f"{tmp_path}/ccip"]),
    ):
        run = RunSettings(
            output_dir=tmp_path / "out", choose=True, choose_encoder=given, choose_held_out=held_out
        )
        planned = choose.plan_choosing(settings_of(run), dataset, Length(3, 3, 4, 12), [], print)
        assert planned is not None
        assert [*words, "--held-out", str(held_out)] == list(planned.layout[-4:])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--choose_encoder", "gone.onnx", "--choose_held_out", "HELD"],
            "choose_encoder: gone.onnx: no such file",
        ),
        (["--choose_encoder", "dino=HELD", "--choose_held_out", "HELD"], "is a folder, not an ONNX file"),
        (["--choose_encoder", "ccip=HELD", "--choose_held_out", "HELD"], "model_feat.onnx: no such file"),
        (["--choose_encoder", "HELD/000.txt", "--choose_held_out", "HELD"], "000.txt: cannot be loaded"),
        (["--choose_encoder", "demo"], "choose_held_out FOLDER names them"),
        (["--choose_encoder", "demo", "--choose_held_out", "gone"], "gone: no such folder"),
        (
            ["--choose_encoder", "demo", "--choose_held_out", "DATA"],
            "is trained on; name a folder of pictures that are",
        ),
    ],
)
def test_what_cannot_be_compared_by_is_refused_before_the_training(
    data: Path, held_out: Path, tmp_path: Path, words: list[str], told: str
) -> None:
    given = [word.replace("HELD", str(held_out)).replace("DATA", str(data)) for word in words]
    done = train(data, tmp_path / "out", *given)
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "error: " in line]
    assert told in line
    assert "base: " not in done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_encoder_without_choose_is_said_to_do_nothing(held_out: Path, tmp_path: Path) -> None:
    run = RunSettings(output_dir=tmp_path, choose_encoder="demo", choose_held_out=held_out)
    settings = replace(settings_of(run, device="cpu"), network=NetworkSettings())
    assert "choose_encoder does nothing without choose" in check_cheaply(settings)[1]


@pytest.mark.slow
def test_epochs_are_compared_by_the_encoder(data: Path, held_out: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(f"{TRIGGER}, 1girl, tea --w 64 --h 64 --s 1\n")
    words = ["--save_every_n_steps", "1", "--sample_prompts", str(prompts)]
    words += ["--choose_encoder", "demo", "--choose_held_out", str(held_out)]
    done = train(data, tmp_path / "out", *words)
    assert done.returncode == 0, done.stderr
    assert f"--encoder demo --held-out {held_out}" in done.stderr
    page = (tmp_path / "out" / "mina-choose.html").read_text()
    assert "mean cosine to held-out pictures" in page
    assert "of the way from the base's pictures to the held-out ones" in done.stderr


def test_networks_that_a_run_leaves() -> None:
    def names(run: RunSettings, epochs: int, steps: int) -> list[str]:
        return [path.stem for path in planned_networks(run, epochs, 10, steps)]

    assert names(RunSettings(output_name="a"), 3, 30) == ["a-000001", "a-000002", "a"]
    assert names(RunSettings(output_name="a"), 3, 25) == ["a-000001", "a-000002", "a"]
    assert names(RunSettings(output_name="a", save_every_n_epochs=2, save_last_n_epochs=1), 9, 90) == [
        "a-000008",
        "a",
    ]
    both = RunSettings(output_name="a", save_every_n_epochs=2, save_every_n_steps=15, save_last_n_steps=15)
    assert names(both, 4, 40) == ["a-step00000015", "a-000002", "a-step00000030", "a"]


def test_of_many_networks_some_are_left_out_and_the_last_is_not() -> None:
    paths = [Path(f"{number}.safetensors") for number in range(1, 26)]
    drawn = choose._thinned(paths)
    assert [path.stem for path in drawn] == ["2", "5", "7", "10", "12", "15", "17", "20", "22", "25"]
    assert choose._thinned(paths[:3]) == paths[:3]


def test_a_program_runs_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as one of a launcher's processes."""
    monkeypatch.setenv("RANK", "1")
    code = "import os; print('RANK' in os.environ); raise SystemExit(3)"
    ran = run_program(Path(sys.executable), ["-c", code])
    assert (ran.output, ran.status) == ("False\n", 3)
    assert find_program("lora-nothing") is None
