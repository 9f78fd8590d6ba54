"""Schedule, targets, losses and weights against reference results."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from lorapipe_engine.settings import LossSettings  # noqa: E402
from lorapipe_engine.train.objective.diffusion import (  # noqa: E402
    Diffusion,
    NoiseSchedule,
    huber_threshold,
    loss_weights,
)

DATA = Path(__file__).parents[2] / "data/train"


def golden(name: str) -> Any:
    return json.loads(gzip.decompress((DATA / f"{name}.json.gz").read_bytes()))


LOSS = golden("a_loss")
STEPS = torch.tensor(LOSS["timesteps"])
KINDS = {"standard": False, "zero_terminal_snr": True}


def agree(found: torch.Tensor, expected: list[float], relative: float = 1e-4) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=relative, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_schedule_and_weights(kind: str) -> None:
    schedule = NoiseSchedule.stable_diffusion(zero_terminal_snr=KINDS[kind])
    want = LOSS[kind]
    torch.testing.assert_close(
        schedule.alpha_bar[STEPS], torch.tensor(want["alphas_cumprod"]), rtol=1e-4, atol=1e-8
    )
    agree(schedule.snr[STEPS], want["snr_used_by_weights"])
    for gamma, row in want["min_snr"].items():
        for target, values in row.items():
            options = LossSettings(min_snr_gamma=float(gamma))
            agree(loss_weights(STEPS, schedule, options, predicts_v=target != "epsilon"), values)
    for target, values in want["debiased"].items():
        options = LossSettings(debiased_estimation_loss=True)
        agree(loss_weights(STEPS, schedule, options, predicts_v=target != "epsilon"), values)
    options = LossSettings(scale_v_pred_loss_like_noise_pred=True)
    weights = loss_weights(STEPS, schedule, options, predicts_v=True)
    agree(weights, want["scale_v_pred_loss_like_noise_pred"])
    for weight, values in want["v_pred_like_loss"].items():
        options = LossSettings(v_pred_like_loss=float(weight))
        agree(loss_weights(STEPS, schedule, options, predicts_v=False), values)


@pytest.mark.parametrize("kind", KINDS)
def test_huber_thresholds(kind: str) -> None:
    schedule = NoiseSchedule.stable_diffusion(zero_terminal_snr=KINDS[kind])
    for name, values in LOSS[kind]["huber_threshold"].items():
        curve, c, scale = name.split()
        objective = LossSettings(
            huber_schedule=curve, huber_c=float(c.split("=")[1]), huber_scale=float(scale.split("=")[1])
        )
        agree(huber_threshold(STEPS, schedule, objective), values)


ALPHA_MASKED = {"alpha mask", "all"}


@pytest.mark.parametrize("case", LOSS["batch_loss"]["cases"], ids=lambda case: case["name"])
def test_whole_batches(case: dict[str, Any]) -> None:
    batch = LOSS["batch_loss"]
    shape = tuple(batch["shape"])
    generator = torch.Generator().manual_seed(batch["seed"])
    latents = torch.randn(shape, generator=generator)
    bias = torch.randn(shape, generator=generator) * 0.3
    height, width = shape[2] * 8, shape[3] * 8
    alpha = (torch.rand(shape[0], height, width, generator=generator) > 0.4).float()
    picture = torch.rand(shape[0], 3, height, width, generator=generator) * 2 - 1
    options = dict(case["options"])
    mask = None
    if options.pop("masked_loss", None):
        mask = picture[:, :1] / 2 + 0.5
    if case["name"] in ALPHA_MASKED:
        mask = alpha[:, None]
    weights = torch.tensor(batch["loss_weights"])
    if "prior_loss_weight" in options:
        weights = torch.where(weights == 1, 1.0, float(options.pop("prior_loss_weight")))
    prediction = "v_prediction" if options.get("v_parameterization") else "epsilon"
    objective = Diffusion(LossSettings(**options), prediction)

    random.seed(batch["seed"])
    torch.manual_seed(batch["seed"])
    noised = objective.draw(latents)
    assert noised.times.tolist() == case["timesteps"]
    if mask is not None:
        mask = torch.nn.functional.interpolate(mask, shape[2:], mode="area")
    losses = objective.losses(0.8 * noised.input + bias, noised, mask)
    loss = (losses * weights * noised.weights).mean()
    torch.testing.assert_close(loss, torch.tensor(case["loss"]), rtol=1e-4, atol=0)
