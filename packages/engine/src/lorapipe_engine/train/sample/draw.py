"""Draw pictures with the model in training: classifier-free guidance around diffusers' samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorapipe_engine.command.libraries import library_imports
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.train.families.base import Conditioning, Family
from lorapipe_engine.train.sample.prompts import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image

# kohya's sampler names -> diffusers class and its settings
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {"steps_offset": 1}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {"steps_offset": 1}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmsolver": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {}),
    "dpmsingle": ("DPMSolverSinglestepScheduler", {}),
}
ALIASES = {
    "k_lms": "lms",
    "k_euler": "euler",
    "k_euler_a": "euler_a",
    "k_dpm_2": "dpm_2",
    "k_dpm_2_a": "dpm_2_a",
}
SAMPLER_NAMES = (*SAMPLERS, *ALIASES)


def make_scheduler(name: str, *, v_prediction: bool) -> Any:
    """A diffusers scheduler over Stable Diffusion's noise schedule. Raises ConfigError for an unknown name."""
    key = ALIASES.get(name, name)
    if key not in SAMPLERS:
        raise ConfigError(f"sample_sampler: '{name}' is unknown; one of {', '.join(SAMPLER_NAMES)}")
    name, settings = SAMPLERS[key]
    with library_imports():
        import diffusers

        kind = getattr(diffusers, name)
    return kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="v_prediction" if v_prediction else "epsilon",
        **settings,
    )


def draw(
    family: Family,
    prompts: Sequence[Prompt],
    *,
    v_prediction: bool = False,
    clip_skip: int | None = None,
    sampler: str = "ddim",
    batch_size: int = 4,
    seed: int = 0,
) -> Iterator[Image]:
    """The pictures of ``prompts`` in order. Those of equal size, steps and sampler share batches.

    A prompt without a seed takes ``seed`` plus its position. The first noise of a picture is drawn on the CPU from
    its seed alone, so it is the same on every device and in every batch; global random streams are left as they were.
    """
    for group in _batches(prompts, batch_size, sampler):
        seeds = [seed + index if prompts[index].seed is None else prompts[index].seed for index in group]
        rows = [prompts[index] for index in group]
        latents = _denoise(family, rows, [int(s or 0) for s in seeds], v_prediction, clip_skip, sampler)
        with torch.inference_mode():
            pixels = family.decode(latents)  # (B, 3, H, W) in -1..1
        yield from _to_images(pixels)


def _batches(prompts: Sequence[Prompt], size: int, sampler: str) -> Iterator[list[int]]:
    """Runs of neighbours that can be drawn together."""
    group: list[int] = []
    for index, prompt in enumerate(prompts):
        if group and (len(group) == size or _shape(prompts[group[0]], sampler) != _shape(prompt, sampler)):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _shape(prompt: Prompt, sampler: str) -> tuple[object, ...]:
    return prompt.width, prompt.height, prompt.steps, prompt.scale, prompt.sampler or sampler


@torch.inference_mode()
def _denoise(
    family: Family,
    rows: Sequence[Prompt],
    seeds: Sequence[int],
    v_prediction: bool,
    clip_skip: int | None,
    sampler: str,
) -> Tensor:
    """Latents (B, 4, h, w), scaled as the UNet sees them."""
    first = rows[0]
    scheduler = make_scheduler(first.sampler or sampler, v_prediction=v_prediction)
    scheduler.set_timesteps(first.steps, device=family.device)
    size = family.latent_size(first.width, first.height)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    noise = torch.stack([torch.randn(4, *size, generator=generator) for generator in generators])
    latents: Tensor = noise.to(family.device) * scheduler.init_noise_sigma
    texts = [*(row.negative for row in rows), *(row.text for row in rows)]
    ids, weights = family.tokenize_weighted(texts)
    conditioning = family.encode_text(ids, clip_skip=clip_skip, weights=weights)
    geometry = family.plain_geometry(len(rows) * 2, first.width, first.height)
    predict = _guided(family, conditioning, geometry, first.scale)
    extra = {"generator": [torch.Generator("cpu").manual_seed(seed + 1) for seed in seeds]}
    if "generator" not in scheduler.step.__code__.co_varnames:
        extra = {}
    for timestep in scheduler.timesteps:
        prediction = predict(scheduler.scale_model_input(latents, timestep), timestep)
        latents = scheduler.step(prediction, timestep, latents, **extra).prev_sample
    return latents


def _guided(
    family: Family, conditioning: Conditioning, geometry: Tensor | None, scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """Predictions pushed away from the negative prompt: n + scale · (p - n)."""

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        doubled = torch.cat([latents, latents])
        steps = timestep.expand(len(doubled))
        both = family.predict(doubled, steps, conditioning, geometry).float()
        negative, positive = both.chunk(2)
        return negative + scale * (positive - negative)

    return predict


def _to_images(pixels: Tensor) -> Iterator[Image]:
    from PIL import Image as Pictures

    values = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    for row in values.permute(0, 2, 3, 1).numpy():
        yield Pictures.fromarray(row)
