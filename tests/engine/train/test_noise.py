"""Noise of a training step against reference results."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lorapipe_engine.settings import LossSettings  # noqa: E402
from lorapipe_engine.train.objective.diffusion import NoiseSchedule, add_noise, draw_timesteps  # noqa: E402
from lorapipe_engine.train.objective.noise import (  # noqa: E402
    draw_noise,
    offset_noise,
    perturb,
    pyramid_noise,
)

DATA = Path(__file__).parents[2] / "data/train/e_noise.json.gz"
CASES = json.loads(gzip.decompress(DATA.read_bytes()))["cases"]


def cases(kind: str) -> list[dict[str, Any]]:
    return [case for case in CASES if case["kind"] == kind]


def tensor(values: list[float], case: dict[str, Any]) -> Any:
    return torch.tensor(values).view(case["shape"])


def agree(found: Any, expected: list[float]) -> None:
    torch.testing.assert_close(found.flatten(), torch.tensor(expected), rtol=1e-5, atol=3e-6)


def test_the_data_hold_every_kind() -> None:
    assert all(cases(kind) for kind in ("multires", "noise_offset", "full_noise_routine"))


@pytest.mark.parametrize("case", cases("multires"))
def test_pyramid_noise(case: dict[str, Any]) -> None:
    for row in case["results"]:
        random.seed(case["python_seed"])
        torch.manual_seed(case["seed"])
        levels = [random.random() for _ in range(row["iterations"])]
        agree(pyramid_noise(tensor(case["noise"], case), row["discount"], levels), row["out"])


@pytest.mark.parametrize("case", cases("noise_offset"))
def test_noise_offset(case: dict[str, Any]) -> None:
    for row in case["results"]:
        torch.manual_seed(case["seed"])
        objective = LossSettings(
            noise_offset=row["noise_offset"], adaptive_noise_scale=row.get("adaptive_noise_scale")
        )
        found = offset_noise(tensor(case["latents"], case), tensor(case["noise"], case), objective)
        agree(found, row["out"])


@pytest.mark.parametrize("case", cases("full_noise_routine"))
def test_a_whole_step_of_noise(case: dict[str, Any]) -> None:
    latents = tensor(case["latents"], case)
    schedule = NoiseSchedule.stable_diffusion()
    for row in case["results"]:
        objective = LossSettings(**row["options"])
        random.seed(case["python_seed"])
        torch.manual_seed(case["seed"])
        levels = [random.random() for _ in range(objective.multires_noise_iterations)]
        noise = draw_noise(latents, objective, levels)
        steps = draw_timesteps(len(latents), objective, latents.device)
        assert steps.tolist() == row["timesteps"]
        agree(noise, row["target_noise"])
        agree(add_noise(latents, perturb(noise, objective), steps, schedule), row["noisy_latents"])


def test_random_strength_is_drawn_once_a_batch() -> None:
    objective = LossSettings(noise_offset=1.0, noise_offset_random_strength=True)
    shape = (500, 4, 1, 1)
    torch.manual_seed(3)
    first = offset_noise(torch.zeros(shape), torch.zeros(shape), objective).std()
    second = offset_noise(torch.zeros(shape), torch.zeros(shape), objective).std()
    assert 0 < first < 1
    assert abs(first - second) > 0.05


def test_pyramid_noise_keeps_unit_variance_and_stops_at_one_cell() -> None:
    torch.manual_seed(0)
    found = pyramid_noise(torch.randn(2, 4, 64, 64), 0.9, [0.5] * 50)
    assert found.std() == pytest.approx(1, abs=1e-4)
    # Neighbours are alike, which white noise's are not.
    both = torch.stack([found[..., :-1].flatten(), found[..., 1:].flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.3


def test_levels_are_drawn_from_torchs_stream() -> None:
    objective = LossSettings(multires_noise_iterations=4)

    def draw(seed: int) -> Any:
        torch.manual_seed(seed)
        random.seed(seed + 100)
        return draw_noise(torch.zeros(1, 4, 16, 16), objective)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


def test_timesteps_cover_the_range() -> None:
    torch.manual_seed(0)
    found = draw_timesteps(4000, LossSettings(min_timestep=10, max_timestep=20), torch.device("cpu"))
    assert sorted(set(found.tolist())) == list(range(10, 20))
    assert set(
        draw_timesteps(9, LossSettings(min_timestep=500, max_timestep=400), torch.device("cpu")).tolist()
    ) == {400}
