"""A new objective is one class and one row: here flow without options, which no other file knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("PIL")

from safetensors.torch import load_file  # noqa: E402

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.models.predictions import PREDICTIONS, Prediction  # noqa: E402
from lorapipe_engine.train.objective.objective import Noised, Objective, Sampler  # noqa: E402
from support.called import status_of  # noqa: E402
from support.tiny import build, save_checkpoint  # noqa: E402

pytestmark = pytest.mark.torch

DRAWN: list[Noised] = []  # what the objective was asked for, in order


class Euler:
    """Straight steps from noise (time 1) to a picture (time 0)."""

    init_noise_sigma = 1.0

    def __init__(self, steps: int, device: Any) -> None:
        self.timesteps = torch.linspace(1.0, 1 / steps, steps, device=device)

    def scale_model_input(self, sample: Any, timestep: Any) -> Any:
        return sample

    def step(self, model_output: Any, timestep: Any, sample: Any) -> Any:
        return type("Step", (), {"prev_sample": sample - model_output / len(self.timesteps)})


class Flow(Objective):
    """Noise minus latents, at times uniform in 0..1."""

    samplers = ("straight",)

    def draw(self, latents: Any, time: float | None = None) -> Noised:
        noise = torch.randn_like(latents)
        times = torch.rand(len(latents)) if time is None else torch.full((len(latents),), time)
        share = times.view(-1, 1, 1, 1)
        drawn = Noised(
            (1 - share) * latents + share * noise, times, noise - latents, torch.ones(len(times)), noise
        )
        DRAWN.append(drawn)
        return drawn

    def losses(self, prediction: Any, noised: Noised, mask: Any = None) -> Any:
        return (prediction - noised.target).square().mean(dim=(1, 2, 3))

    def validation_times(self, count: int) -> list[float]:
        return [number / (count + 1) for number in range(1, count + 1)]

    def sampler(self, name: str | None, steps: int) -> Sampler:
        self.check_sampler(name)
        return Euler(steps, self.device)


@pytest.fixture
def _row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Prediction(name="flow_for_tests", word="toyflow", objective=f"{__name__}:Flow")
    monkeypatch.setitem(PREDICTIONS, row.name, row)
    DRAWN.clear()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that says that it predicts flow, one that says epsilon, and pictures."""
    root = tmp_path_factory.mktemp("toy")
    tiny = build("sd1")
    for word in ("toyflow", "epsilon"):
        save_checkpoint(tiny, root / word / "base.safetensors", {"modelspec.prediction_type": word})
    draw_concept(root / "pictures", "mirelune", pictures=4, repeats=1, seed=1)
    (root / "prompts.txt").write_text("a red cat --w 64 --h 64 --s 3 --d 1\n")
    return root


def train(place: Path, word: str, out: Path, *more: object) -> int:
    words = "--resolution 64 --device cpu --network_dim 2 --max_token_length 75 --output_name net --quiet"
    words += (
        f" --save_precision float --base {place}/{word}/base.safetensors --train_data_dir {place}/pictures"
    )
    return status_of(lora_train, *words.split(), "--output_dir", out, *more)


@pytest.mark.usefixtures("_row")
def test_an_objective_trains_is_validated_and_draws(place: Path, tmp_path: Path) -> None:
    draws = ("--sample_prompts", place / "prompts.txt", "--sample_every_n_steps", 2)
    measures = ("--validation_split", 0.25, "--validate_every_n_steps", 2, "--trace_steps", 0)
    assert train(place, "toyflow", tmp_path, "--max_train_steps", 2, *draws, *measures) == 0
    # Two steps at times of their own, then the kept picture at four fixed ones.
    assert [len(row.times) for row in DRAWN] == [1] * 6
    assert [round(float(row.times[0]), 3) for row in DRAWN[2:]] == [0.2, 0.4, 0.6, 0.8]
    trace = load_file(tmp_path / "trace/step-000000.safetensors")
    assert torch.equal(trace["0.target"], trace["0.noise"] - trace["0.latents"])
    expected = (trace["0.prediction"] - trace["0.target"]).square().mean()
    torch.testing.assert_close(trace["loss"], expected)
    rows = [json.loads(line) for line in (tmp_path / "net.metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss/validation/step_average" in row] == [2]
    assert len(list((tmp_path / "sample").glob("*.png"))) == 1
    with open_tensors(tmp_path / "net.safetensors") as file:
        assert file.metadata["modelspec.prediction_type"] == "toyflow"


@pytest.mark.usefixtures("_row")
def test_another_objective_learns_another_network(place: Path, tmp_path: Path) -> None:
    networks = []
    for word in ("toyflow", "epsilon"):
        assert train(place, word, tmp_path / word, "--max_train_steps", 2) == 0
        networks.append(load_file(tmp_path / word / "net.safetensors"))
    one, other = networks
    assert one.keys() == other.keys()
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.usefixtures("_row")
def test_a_run_goes_on_as_if_it_had_not_stopped(place: Path, tmp_path: Path) -> None:
    steady = ("--lr_scheduler", "constant")
    assert train(place, "toyflow", tmp_path / "whole", "--max_train_steps", 4, *steady) == 0
    half = tmp_path / "half"
    assert train(place, "toyflow", half, "--max_train_steps", 2, "--save_state_on_train_end", *steady) == 0
    state = half / "net-end.state"
    assert train(place, "toyflow", tmp_path / "rest", "--max_train_steps", 4, "--resume", state, *steady) == 0
    one, other = (load_file(tmp_path / name / "net.safetensors") for name in ("whole", "rest"))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.usefixtures("_row")
def test_a_sampler_that_the_objective_lacks_is_refused_before_training(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("cat --ss ddim\n")
    assert train(place, "toyflow", tmp_path, "--sample_prompts", tmp_path / "prompts.txt") == 2
    assert "'ddim' is unknown; one of straight" in capsys.readouterr().err
    assert DRAWN == []
