"""Samplers against trajectories of k-diffusion and A1111 on a toy model whose best denoiser is known."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from lorapipe_engine.errors import ConfigError, MissingExtra  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.sampling.noise.samplers import SAMPLERS, count_evaluations  # noqa: E402
from lorapipe_engine.sampling.noise.schedules import make_sigmas, noise_table  # noqa: E402
from lorapipe_engine.train.sample.samplers.brownian import brownian_noise  # noqa: E402
from lorapipe_engine.train.sample.samplers.course import plan_course  # noqa: E402
from lorapipe_engine.train.sample.samplers.methods import METHODS, ancestral_step, lms_weights  # noqa: E402
from lorapipe_engine.train.sample.samplers.scheduler import CourseScheduler  # noqa: E402

DATA = Path(__file__).parents[2] / "data" / "see" / "trajectories.safetensors"
with open_tensors(DATA) as _file:
    GOLDEN = {name: torch.from_numpy(_file.read(name)).double() for name in _file.tensors}
KEYS = sorted(name.removesuffix(".final") for name in GOLDEN if name.endswith(".final"))
NAMES = {
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "dpm2_a": "DPM2 a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "ddim": "DDIM",
    "plms": "PLMS",
    "unipc": "UniPC",
    "lcm": "LCM",
}
SCHEDULES = {"_karras": "Karras", "_exponential": "Exponential", "_sgm_uniform": "SGM Uniform"}
TABLE = noise_table()

# ---------------------------------------------------------------------------------------------- the toy model

PLACES = torch.arange(64, dtype=torch.float64)
MODE = (0.3 + 0.9 * torch.frac(PLACES * 0.6180339887498949)).reshape(1, 4, 4, 4)
VARIANCE = (0.02 + 0.10 * torch.frac(PLACES * 0.7548776662466927)).reshape(1, 4, 4, 4)
MIDDLE = (0.5 * torch.sin(PLACES)).reshape(1, 4, 4, 4)


def denoise(x: Any, sigma: float) -> Any:
    """The mean of a mixture of two normals at MIDDLE ± MODE, seen through noise of a level."""
    whole = VARIANCE + sigma**2
    y = x - MIDDLE
    return MIDDLE + (VARIANCE * y + sigma**2 * MODE * torch.tanh(MODE * y / whole)) / whole


def toy(seen: Any, time: float, kind: str) -> Any:
    """What a UNet answers to an input of unit variance."""
    sigma = float(TABLE.sigma_at(time))
    x = seen * math.sqrt(1 + sigma**2)
    clean = denoise(x, sigma)
    noise = (x - clean) / sigma
    return noise if kind == "eps" else (noise - sigma * clean) / math.sqrt(1 + sigma**2)


def recipe(key: str) -> tuple[str, str, str, int]:
    """Sampler, schedule, kind of prediction and steps of a trajectory."""
    name, kind, steps = key.rsplit(".", 2)
    schedule = next((label for ending, label in SCHEDULES.items() if name.endswith(ending)), "")
    for ending in SCHEDULES:
        name = name.removesuffix(ending)
    own = SAMPLERS[NAMES[name]].own_schedule
    return NAMES[name], schedule or ("Automatic" if own else "Uniform"), kind, int(steps)


def draw(scheduler: CourseScheduler, kind: str, steps: int) -> tuple[Any, list[float]]:
    """As a pipeline of diffusers does it."""
    scheduler.set_timesteps(steps)
    x = GOLDEN["init_noise"] * scheduler.init_noise_sigma
    times = []
    for time, row in zip(scheduler.timesteps, scheduler.course.evaluations, strict=True):
        assert float(time) == pytest.approx(row.time)
        times.append(row.time)
        output = toy(scheduler.scale_model_input(x, time), row.time, kind)
        x = scheduler.step(output, time, x, return_dict=False)[0]
    return x, times


@pytest.mark.parametrize("key", KEYS)
def test_trajectories_are_the_reference_programs(key: str) -> None:
    sampler, schedule, kind, steps = recipe(key)
    prediction = "epsilon" if kind == "eps" else "v_prediction"
    scheduler = CourseScheduler(sampler, schedule, prediction)
    feed = iter(GOLDEN["step_noise"])
    scheduler.noise_sampler = lambda *_: next(feed).unsqueeze(0)
    x, times = draw(scheduler, kind, steps)
    assert (x - GOLDEN[f"{key}.final"]).abs().max() < 2e-5
    assert times == pytest.approx(GOLDEN[f"{key}.times"].tolist(), abs=1e-3)
    assert len(times) == count_evaluations(SAMPLERS[sampler], steps)


def test_every_sampler_has_a_trajectory_or_a_test_of_its_own() -> None:
    assert {*SAMPLERS} - {*NAMES.values()} == {"DPM2", "DPM++ 2S a"}


@pytest.mark.parametrize("sampler", ["DPM2", "DPM++ 2S a", "Heun", "DPM2 a", "DPM++ SDE"])
def test_methods_of_second_order_converge_as_such(sampler: str) -> None:
    """Without noise, twice the steps leave about a quarter of the error."""
    ends = {}
    for steps in (40, 80, 640):
        scheduler = CourseScheduler(sampler, "Exponential", eta=0.0)
        scheduler.noise_sampler = lambda *_: torch.zeros(1, dtype=torch.float64)
        ends[steps], _ = draw(scheduler, "eps", steps)
    coarse, fine = ((ends[steps] - ends[640]).abs().mean() for steps in (40, 80))
    assert 3 < coarse / fine < 5.5


def test_2s_is_the_published_formula() -> None:
    """DPM-Solver++(2S), algorithm 1 of Lu et al. 2022 with r = 1/2 in alpha = 1, after an ancestral step down."""
    sigma, following = 3.0, 1.7
    eta = 0.8
    up = min(following, eta * (following**2 * (sigma**2 - following**2) / sigma**2) ** 0.5)
    down = (following**2 - up**2) ** 0.5
    x = GOLDEN["init_noise"] * sigma
    width = math.log(sigma) - math.log(down)
    middle = math.exp(math.log(sigma) - width / 2)
    half = (middle / sigma) * x - math.expm1(-width / 2) * denoise(x, sigma)
    wanted = (down / sigma) * x - math.expm1(-width) * denoise(half, middle)
    noise = GOLDEN["step_noise"][0].unsqueeze(0)
    walk = METHODS["DPM++ 2S a"](x, [sigma, following, 0.0], lambda *_: noise, eta)
    asked, level = next(walk)
    asked, level = walk.send(denoise(asked, level))
    assert level == pytest.approx(middle)
    found, level = walk.send(denoise(asked, level))
    assert level == following
    assert torch.allclose(found, wanted + noise * up, atol=1e-12)
    assert ancestral_step(sigma, following, eta) == pytest.approx((down, up))
    assert ancestral_step(sigma, following, 0.0) == (following, 0.0)


def test_lms_weights_are_integrals() -> None:
    sigmas = make_sigmas("Uniform", 8, TABLE).tolist()
    # A constant slope is integrated exactly, and so is a cubic one by four of them.
    for order in (1, 2, 3, 4):
        assert sum(lms_weights(sigmas, 5, order)) == pytest.approx(sigmas[6] - sigmas[5])
    weights = lms_weights(sigmas, 5, 4)
    cubic = sum(weight * sigmas[5 - back] ** 3 for back, weight in enumerate(weights))
    assert cubic == pytest.approx((sigmas[6] ** 4 - sigmas[5] ** 4) / 4)


@pytest.mark.parametrize("sampler", ["Euler a", "DPM2 a", "DPM++ 2S a", "DPM++ SDE", "DPM++ 2M SDE", "DDIM"])
def test_eta_scales_the_noise(sampler: str) -> None:
    def at(eta: float, scale: float) -> Any:
        scheduler = CourseScheduler(sampler, eta=eta)
        feed = iter(GOLDEN["step_noise"])
        scheduler.noise_sampler = lambda *_: next(feed).unsqueeze(0) * scale
        return draw(scheduler, "eps", 10)[0]

    assert torch.equal(at(0.0, 1.0), at(0.0, 0.0))
    assert not torch.allclose(at(0.5, 1.0), at(0.5, 0.0))
    assert not torch.allclose(at(0.5, 1.0), at(1.0, 1.0))


def test_noise_of_a_picture_does_not_depend_on_its_batch() -> None:
    x = torch.zeros(2, 4, 8, 8)

    def first_noise(seeds: list[int]) -> Any:
        scheduler = CourseScheduler("Euler a")
        scheduler.set_timesteps(3)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        rows = x[: len(seeds)]
        return scheduler.step(rows, scheduler.timesteps[0], rows, generator=generators).prev_sample

    assert torch.equal(first_noise([5, 7])[1:], first_noise([7]))
    assert not torch.equal(first_noise([5, 7])[:1], first_noise([7]))


def test_a_scheduler_can_be_used_again_and_stored(tmp_path: Path) -> None:
    scheduler = CourseScheduler("DPM++ 2M", "Karras", "v_prediction")
    first, _ = draw(scheduler, "v", 10)
    again, _ = draw(scheduler, "v", 10)
    assert torch.equal(first, again)
    scheduler.save_pretrained(tmp_path)
    stored = CourseScheduler.from_pretrained(tmp_path)
    assert torch.equal(draw(stored, "v", 10)[0], first)


def test_zero_terminal_snr_asks_for_v() -> None:
    zero = noise_table(zero_terminal_snr=True)
    course = plan_course(SAMPLERS["Euler"], "SGM Uniform", 10, zero, "v_prediction")
    assert course.first == pytest.approx(4518.8, rel=1e-4)
    assert course.evaluations[0].time == pytest.approx(999)
    assert all(math.isfinite(row.skip) and math.isfinite(row.out) for row in course.evaluations)
    with pytest.raises(ConfigError, match="predicts noise"):
        plan_course(SAMPLERS["Euler"], "SGM Uniform", 10, zero)


def test_sde_samplers_name_the_extra_that_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchsde", None)
    scheduler = CourseScheduler("DPM++ SDE")
    x = torch.zeros(1, 4, 8, 8)
    with pytest.raises(MissingExtra, match="pip install torchsde"):
        scheduler.step(x, scheduler.timesteps[0], x)


def test_sde_noise_is_a_path_of_its_picture() -> None:
    pytest.importorskip("torchsde")
    noise = brownian_noise(torch.zeros(2, 4, 32, 32), 0.03, 14.6, [1, 2])
    step = noise(10.0, 5.0)
    assert step.std() == pytest.approx(1.0, abs=0.05)
    alone = brownian_noise(torch.zeros(1, 4, 32, 32), 0.03, 14.6, [2])
    assert torch.equal(alone(10.0, 5.0), step[1:])
    # Two half steps together are the whole step.
    parts = noise(10.0, 7.0) * math.sqrt(3) + noise(7.0, 5.0) * math.sqrt(2)
    assert torch.allclose(parts / math.sqrt(5), step, atol=1e-5)
    assert float(np.corrcoef(step[0].flatten(), step[1].flatten())[0, 1]) == pytest.approx(0, abs=0.06)


def tiny_unet() -> Any:
    """A UNet with random weights that draws 8x8 latents."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        block_out_channels=(32,),
        cross_attention_dim=32,
        attention_head_dim=8,
        layers_per_block=1,
        norm_num_groups=8,
    )


@torch.inference_mode()
def test_diffusers_own_pipeline_draws_what_a_course_draws() -> None:
    from diffusers import AutoencoderKL, StableDiffusionPipeline

    unet, vae = tiny_unet(), AutoencoderKL(block_out_channels=(32,), norm_num_groups=8)
    prompt, negative, latents = torch.randn(1, 77, 32), torch.randn(1, 77, 32), torch.randn(1, 4, 8, 8)
    for sampler in ("Euler a", "Heun", "DPM++ 2M", "DDIM", "UniPC", "LCM"):
        pipeline = StableDiffusionPipeline(
            vae=vae,
            text_encoder=None,
            tokenizer=None,
            unet=unet,
            scheduler=CourseScheduler(sampler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        drawn = pipeline(
            prompt_embeds=prompt,
            negative_prompt_embeds=negative,
            latents=latents.clone(),
            num_inference_steps=10,
            guidance_scale=5.0,
            output_type="latent",
            generator=torch.Generator().manual_seed(1),
        ).images
        course = plan_course(SAMPLERS[sampler], "Automatic", 10, TABLE)
        assert torch.allclose(drawn, walk(course, unet, torch.cat([negative, prompt]), latents), atol=1e-5)


def walk(course: Any, unet: Any, texts: Any, latents: Any) -> Any:
    """A course walked by hand, with guidance 5."""
    generator = torch.Generator().manual_seed(1)
    steps = course.walk(latents * course.first, lambda *_: torch.randn(latents.shape, generator=generator))
    x, _ = next(steps)
    for row in course.evaluations[:-1]:
        x, _ = steps.send(x * row.skip + guided(unet, x * row.scale, row.time, texts) * row.out)
    row = course.evaluations[-1]
    with pytest.raises(StopIteration) as end:
        steps.send(x * row.skip + guided(unet, x * row.scale, row.time, texts) * row.out)
    return end.value.value


def guided(unet: Any, seen: Any, time: float, texts: Any) -> Any:
    """The prediction for the prompt, pushed away from the negative one's."""
    both = unet(torch.cat([seen, seen]), torch.tensor(time), encoder_hidden_states=texts).sample
    negative, positive = both.chunk(2)
    return negative + 5.0 * (positive - negative)
