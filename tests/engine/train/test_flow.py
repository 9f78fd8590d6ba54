"""Rectified flow: times, targets, weights, losses and levels against numbers of other trainers, and whole runs."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("PIL")

from PIL import Image  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_engine.cli import lora_train  # noqa: E402
from lorapipe_engine.errors import ConfigError  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.sample_cli import lora_sample  # noqa: E402
from lorapipe_engine.sampling.noise.samplers import OF_FLOW  # noqa: E402
from lorapipe_engine.settings import LossSettings  # noqa: E402
from lorapipe_engine.train.objective import flow as flow_module  # noqa: E402
from lorapipe_engine.train.objective.flow import (  # noqa: E402
    Flow,
    assign,
    flow_levels,
    loss_weights,
    nearest_noise,
)
from lorapipe_engine.train.objective.objective import Noised  # noqa: E402
from lorapipe_engine.train.objective.times import Draws, flux_mu  # noqa: E402
from lorapipe_engine.train.sample.samplers.scheduler import CourseScheduler  # noqa: E402
from support.called import status_of  # noqa: E402
from support.tiny import build, save_checkpoint  # noqa: E402

pytestmark = pytest.mark.torch
DATA = Path(__file__).parents[2] / "data/flow"
GOLDEN = json.loads((DATA / "flow.json").read_text())
TENSORS = load_file(DATA / "flow.safetensors")
OTHERS, SDXL = GOLDEN["sd_scripts"], GOLDEN["bluvoll"]


@dataclass(frozen=True)
class Given(Draws):
    """The draws of the reference instead of new ones."""

    def normal(self) -> Any:
        return torch.tensor(GOLDEN["normal"])[: self.count]

    def uniform(self) -> Any:
        return torch.tensor(GOLDEN["uniform"])[: self.count]


DRAWS = Given(6, torch.device("cpu"))


def close(got: Any, wanted: Any, share: float = 3e-5) -> None:
    wanted = torch.as_tensor(wanted)
    size = max(float(wanted.abs().max()), 1e-6)
    assert got.shape == wanted.shape
    assert float((got.double() - wanted.double()).abs().max()) <= share * size


# ------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize("row", OTHERS, ids=lambda row: f"{row['timestep_sampling']} {row['options']}")
def test_times_inputs_and_losses_are_those_of_sd_scripts(row: dict[str, Any]) -> None:
    options = LossSettings(timestep_sampling=row["timestep_sampling"], **row["options"])
    flow = Flow(options)
    sigma = flow.shares(DRAWS, (4, 6))
    close(sigma, row["sigma"])
    latents, noise = TENSORS["latents"], TENSORS["noise"]
    noised = at(flow, latents, noise, sigma)
    close(noised.times, row["timestep"])
    close(noised.input.mean((1, 2, 3)), row["noisy_mean"], 1e-3)
    close(noised.input.std((1, 2, 3)), row["noisy_std"])
    losses = flow.losses(TENSORS["prediction"], noised)
    for scheme in ("none", "sigma_sqrt", "cosmap"):
        weights = loss_weights(sigma, scheme)
        close(weights, row[f"weight_{scheme}"])
        close(losses * weights, row[f"loss_{scheme}"])
    for size, wanted in row.get("by_latent_size", {}).items():
        height, width = map(int, size.split("x"))
        close(flow.shares(DRAWS, (height, width)), wanted)


def at(flow: Flow, latents: Any, noise: Any, sigma: Any) -> Noised:
    """What the objective makes of given noise at given times, row by row."""
    rows = []
    for row, share in enumerate(sigma.tolist()):
        drawn = noise[row : row + 1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flow_module, "draw_noise", lambda *_, drawn=drawn: drawn)
            rows.append(flow.draw(latents[row : row + 1], share * 1000))
    return Noised(
        *(torch.cat([getattr(made, name) for made in rows]) for name in Noised.__dataclass_fields__)
    )


@pytest.mark.parametrize("row", SDXL, ids=lambda row: str(row["options"]))
def test_times_and_losses_are_those_of_sdxl_flow_trainers(row: dict[str, Any]) -> None:
    options = dict(row["options"])
    ordered = options.pop("flow_use_ot", False)
    flow = Flow(LossSettings(**options))
    # Their shift goes by the bucket; each row of the reference has one of its own.
    sides = [(round((pixels / 64) ** 0.5), pixels) for pixels in row["pixels"]]
    shares = []
    for index, (side, pixels) in enumerate(sides):
        cells = (side, round(pixels / 64 / side))
        shares.append(flow.shares(DRAWS, cells)[index])
    close(torch.stack(shares), row["sigma"], 1e-3)
    latents, noise = TENSORS["latents4"], TENSORS["noise4"]
    order = nearest_noise(latents, noise) if ordered else list(range(6))
    assert order == row["noise_order"]
    noised = at(flow, latents, noise[order], torch.stack(shares))
    close(flow.losses(TENSORS["prediction4"], noised), row["loss"])
    contrasted = Flow(LossSettings(contrastive_flow_matching=True))
    close(contrasted.losses(TENSORS["prediction4"], noised), row["loss_contrastive_0_05"])
    assert contrasted.losses(TENSORS["prediction4"][:1], noised.rows(slice(0, 1))).item() > 0


def test_levels_are_those_of_inference_programs() -> None:
    for name, wanted in GOLDEN["inference_sigmas"].items():
        steps, shift = int(name.split()[-3]), float(name.split()[-1])
        if "default" not in name:  # which shifts twice
            close(torch.tensor(flow_levels(steps, shift)), wanted)
    for size, wanted in GOLDEN["flux_mu"].items():
        height, width = map(int, size.split("x"))
        assert flux_mu((height, width)) == pytest.approx(wanted)


def test_no_other_order_of_noise_is_nearer() -> None:
    torch.manual_seed(3)
    for count in (1, 2, 5):
        costs = torch.randn(count, count).tolist()
        best = min(
            sum(costs[row][column] for row, column in enumerate(order))
            for order in itertools.permutations(range(count))
        )
        places = assign(costs)
        assert sorted(places) == list(range(count))
        assert sum(costs[row][column] for row, column in enumerate(places)) == pytest.approx(best)


def test_times_stay_in_the_range_that_is_asked_for() -> None:
    for more in ({}, {"timestep_sampling": "sigmoid"}, {"flow_timestep_distribution": "uniform"}):
        flow = Flow(LossSettings(min_timestep=200, max_timestep=300, **more))  # type: ignore[arg-type]
        times = flow.draw(torch.zeros(64, 4, 2, 2)).times
        assert times.min() >= 200
        assert times.max() <= 300
        assert times.std() > 5
    assert Flow(LossSettings()).validation_times(4) == [200, 400, 600, 800]


def test_euler_walks_a_straight_way_exactly() -> None:
    picture, noise = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    walk = Flow(LossSettings(flow_sample_shift=3.0)).sampler(None, 4)
    assert walk.timesteps[0] == 1000
    latents = noise
    for time in walk.timesteps:
        latents = walk.step(noise - picture, time, walk.scale_model_input(latents, time)).prev_sample
    torch.testing.assert_close(latents, picture, atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"v_parameterization": True}, "flow or v, not both"),
        ({"min_snr_gamma": 5.0}, "min_snr_gamma: is made for the noise schedule"),
        ({"debiased_estimation_loss": True}, "debiased_estimation_loss"),
        ({"zero_terminal_snr": True}, "zero_terminal_snr"),
        ({"loss_type": "huber"}, "give exponential"),
        ({"timestep_sampling": "shift", "flow_timestep_distribution": "uniform"}, "leave one of both out"),
        ({"timestep_curve": ("5",)}, "no TIMESTEP:WEIGHT"),
        ({"timestep_curve": ("500:1", "400:1")}, "must rise"),
        ({"timestep_curve": ("0:1",), "timestep_sampling": "shift"}, "leave timestep_sampling out"),
    ],
)
def test_options_that_mean_nothing_with_flow(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word) as error:
        Flow.check(LossSettings(**options), None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"flow_uniform_static_ratio": 2.5}, "without flow_timestep_distribution uniform"),
        ({"flow_timestep_distribution": "uniform", "flow_logit_mean": 0.1}, "distribution logit_normal"),
        ({"discrete_flow_shift": 3.0}, "without timestep_sampling shift or sigma"),
        ({"weighting_scheme": "mode"}, "without timestep_sampling sigma"),
        ({"cfm_lambda": 0.1}, "without contrastive_flow_matching"),
    ],
)
def test_options_that_do_nothing_are_said(options: dict[str, Any], note: str) -> None:
    assert any(note in line for line in Flow.check(LossSettings(**options), None))


# ------------------------------------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two SDXL bases, one that says that it predicts flow, and pictures."""
    root = tmp_path_factory.mktemp("flow")
    tiny = build("sdxl")
    save_checkpoint(tiny, root / "silent/base.safetensors")
    save_checkpoint(tiny, root / "flow/base.safetensors", {"modelspec.prediction_type": "flow"})
    draw_concept(root / "pictures", "mirelune", pictures=4, repeats=1, seed=1)
    (root / "prompts.txt").write_text("a red cat --w 64 --h 64 --s 2 --d 1\n")
    return root


def train(place: Path, base: str, out: Path, *more: object) -> int:
    words = "--resolution 64 --device cpu --network_dim 2 --max_token_length 75 --output_name net --quiet"
    words += " --network_train_unet_only --save_precision float --max_train_steps 2 --train_batch_size 2"
    words += f" --base {place}/{base}/base.safetensors --train_data_dir {place}/pictures"
    return status_of(lora_train, *words.split(), "--output_dir", out, *more)


def test_a_base_that_says_so_is_trained_as_flow(place: Path, tmp_path: Path) -> None:
    draws = ("--sample_prompts", place / "prompts.txt", "--sample_every_n_steps", 2)
    measures = ("--validation_split", 0.25, "--validate_every_n_steps", 2, "--trace_steps", 0)
    assert train(place, "flow", tmp_path / "told", *draws, *measures) == 0
    trace = load_file(tmp_path / "told/trace/step-000000.safetensors")
    assert torch.equal(trace["0.target"], trace["0.noise"] - trace["0.latents"])
    share = trace["0.timesteps"].view(-1, 1, 1, 1) / 1000
    assert not torch.equal(trace["0.timesteps"], trace["0.timesteps"].round())
    torch.testing.assert_close(
        trace["0.noisy_latents"], (1 - share) * trace["0.latents"] + share * trace["0.noise"]
    )
    assert len(list((tmp_path / "told/sample").glob("*.png"))) == 1
    with open_tensors(tmp_path / "told/net.safetensors") as file:
        said = file.metadata
    assert said["modelspec.prediction_type"] == "flow"
    assert said["ss_flow_model"] == "True"
    assert said["ss_min_snr_gamma"] == "None"
    # The user says it of a file that does not, and gets the same.
    assert train(place, "silent", tmp_path / "asked", "--flow_model", *draws, *measures) == 0
    one, other = (load_file(tmp_path / name / "net.safetensors") for name in ("told", "asked"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_options_of_a_run_are_refused_and_kept(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(place, "silent", tmp_path, "--flow_model", "--v_parameterization") == 2
    assert "flow or v, not both" in capsys.readouterr().err
    assert train(place, "flow", tmp_path, "--min_snr_gamma", 5) == 2
    assert "min_snr_gamma: is made for the noise schedule" in capsys.readouterr().err
    assert train(place, "silent", tmp_path, "--flow_logit_mean", 0.5) == 2
    assert "give --flow_model if it is one" in capsys.readouterr().err
    assert train(place, "silent", tmp_path, "--flow_model", "--sample_sampler", "euler_a") == 2
    assert "'euler_a' is unknown; one of euler" in capsys.readouterr().err
    curve = ("--timestep_curve", "0:1", "1000:1", "--timestep_sampling", "shift", "--dry_run")
    assert train(place, "silent", tmp_path, *curve) == 2  # whatever the base predicts
    assert "timestep_curve: draws timesteps in its own way" in capsys.readouterr().err
    assert not (tmp_path / "net.safetensors").exists()
    form = ("--vae_custom_scale", 0.1406, "--vae_custom_shift", -0.4743, "--vae_reflection_padding")
    ways = ("--flow_use_ot", "--contrastive_flow_matching", "--timestep_sampling", "shift")
    shift = ("--discrete_flow_shift", 2.5, "--weighting_scheme", "cosmap")
    assert train(place, "flow", tmp_path, *form, *ways, *shift) == 0
    with open_tensors(tmp_path / "net.safetensors") as file:
        said = file.metadata
    assert said["ss_vae_shift_factor"] == "-0.4743"
    assert said["ss_vae_reflection_padding"] == "True"
    assert said["ss_timestep_sampling"] == "shift"
    assert said["ss_discrete_flow_shift"] == "2.5"
    assert said["ss_flow_use_ot"] == "True"
    assert "ss_flow_logit_mean" not in said


def test_other_channels_are_refused(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 32),
        latent_channels=16,
    )
    vae.save_pretrained(tmp_path / "vae")
    assert train(place, "flow", tmp_path, "--vae", tmp_path / "vae") == 2
    error = capsys.readouterr().err
    assert "the VAE makes 16 channels, the UNet reads 4; give a VAE of 4 with --vae" in error


# ------------------------------------------------------------------------------------------ pictures by plan


def sample(place: Path, base: str, out: Path, *more: object) -> int:
    words = (
        f"--base {place}/{base}/base.safetensors --prompt cat --seed 5 --steps 2 --size 64x64 --device cpu"
    )
    with pytest.raises(SystemExit) as stop:
        lora_sample.main([*words.split(), "--output-dir", str(out), "--json", *map(str, more)])
    return int(stop.value.code or 0)


def test_a_flow_base_is_drawn_along_straight_levels(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(place, "flow", tmp_path / "told") == 0
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (row["sampler"], row["flow_shift"]) == ("Euler", 3)
    with Image.open(tmp_path / "told" / Path(row["path"]).name) as picture:
        assert "Flow shift: 3" in picture.info["parameters"]
        pixels = picture.tobytes()
    # Said by the user of a file that does not, with a VAE of another form: the same way, another picture.
    assert sample(place, "silent", tmp_path / "asked", "--flow-model") == 0
    assert (
        sample(place, "silent", tmp_path / "vae", "--flow-model", "--vae-scale", 0.2, "--vae-reflection") == 0
    )
    drawn = []
    for line in capsys.readouterr().out.splitlines():
        with Image.open(json.loads(line)["path"]) as picture:
            drawn.append(picture.tobytes())
    assert drawn[0] == pixels != drawn[1]


def test_what_a_flow_base_cannot_be_drawn_with(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more, word in (
        (("--sampler", "Euler a"), "give Euler, Heun or LMS"),
        (("--sampler", "Euler", "--schedule", "Karras"), "--flow-shift moves its steps"),
    ):
        assert sample(place, "flow", tmp_path, *more, "--dry-run") == 2
        assert word in capsys.readouterr().err
    network = tmp_path / "mina.safetensors"
    save_file({"a": torch.zeros(1)}, network, {"modelspec.prediction_type": "flow"})
    assert sample(place, "silent", tmp_path, network, "--dry-run") == 0
    assert "mina was trained on a base that predicts flow; give --flow-model" in capsys.readouterr().err
    assert sample(place, "flow", tmp_path, network, "--dry-run") == 0
    assert "predicts flow" not in capsys.readouterr().err
    assert sample(place, "silent", tmp_path, "--flow-shift", 3, "--dry-run") == 2
    assert "give --flow-model if the base is one" in capsys.readouterr().err


def test_samplers_of_a_plan_walk_a_straight_way_exactly() -> None:
    picture, noise = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    for name in OF_FLOW:
        walk: Any = CourseScheduler(name, "Automatic", "flow_prediction", None, False, 3.0)
        walk.set_timesteps(4)
        assert walk.timesteps[0] == 1000
        latents = noise * walk.init_noise_sigma
        for time in walk.timesteps:
            latents = walk.step(noise - picture, time, walk.scale_model_input(latents, time)).prev_sample
        torch.testing.assert_close(latents, picture, atol=1e-5, rtol=0)
