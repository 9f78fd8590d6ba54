"""Draw pictures with the model in training: classifier-free guidance around diffusers' samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.families.text import Conditioning
from lorapipe_engine.train.objective.objective import Objective
from lorapipe_engine.train.sample.prompts import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image


def draw(
    family: Family,
    objective: Objective,
    prompts: Sequence[Prompt],
    *,
    sampler: str | None = None,
    batch_size: int = 4,
    seed: int = 0,
) -> Iterator[Image]:
    """The pictures of ``prompts`` in order. Those of equal size, steps and sampler share batches.

    A prompt without a seed takes ``seed`` plus its position. The first noise of a picture is drawn on the CPU from
    its seed alone, so it is the same on every device and in every batch; global random streams are left as they were.
    ``sampler``: of prompts that name none; None is the objective's usual one. Raises ConfigError for one that it lacks.
    """
    for group in _batches(prompts, batch_size, sampler):
        seeds = [seed + index if prompts[index].seed is None else prompts[index].seed for index in group]
        rows = [prompts[index] for index in group]
        latents = _denoise(family, objective, rows, [int(s or 0) for s in seeds], sampler)
        with torch.inference_mode():
            pixels = family.decode(latents)  # (B, 3, H, W) in -1..1
        yield from to_images(pixels)


def _batches(prompts: Sequence[Prompt], size: int, sampler: str | None) -> Iterator[list[int]]:
    """Runs of neighbours that can be drawn together."""
    group: list[int] = []
    for index, prompt in enumerate(prompts):
        if group and (len(group) == size or _shape(prompts[group[0]], sampler) != _shape(prompt, sampler)):
            yield group
            group = []
        group.append(index)
    if group:
        yield group


def _shape(prompt: Prompt, sampler: str | None) -> tuple[object, ...]:
    return prompt.width, prompt.height, prompt.steps, prompt.scale, prompt.sampler or sampler


@torch.inference_mode()
def _denoise(
    family: Family,
    objective: Objective,
    rows: Sequence[Prompt],
    seeds: Sequence[int],
    sampler: str | None,
) -> Tensor:
    """Latents (B, C, h, w), scaled as the denoiser sees them."""
    first = rows[0]
    walk = objective.sampler(first.sampler or sampler, first.steps)
    noise = first_noise(family, first.width, first.height, seeded(seeds))
    latents: Tensor = noise * walk.init_noise_sigma
    texts = [*(row.negative for row in rows), *(row.text for row in rows)]
    conditioning = family.text.encode(family.text.tokenize(texts, weighted=True))
    geometry = family.plain_geometry(len(rows) * 2, first.width, first.height)
    predict = guided(family, conditioning, geometry, first.scale)
    extra = {}
    if "generator" in signature(walk.step).parameters:
        extra = {"generator": seeded([seed + 1 for seed in seeds])}
    return denoise(walk, predict, latents, **extra)


def seeded(seeds: Sequence[int]) -> list[torch.Generator]:
    """A stream of random numbers on the CPU for each picture."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def first_noise(family: Family, width: int, height: int, generators: Sequence[torch.Generator]) -> Tensor:
    """Unit noise (B, C, h, w) for pictures of width x height pixels, of each picture's own generator."""
    size = family.latent_size(width, height)
    noise = [torch.randn(family.latent_channels, *size, generator=generator) for generator in generators]
    return torch.stack(noise).to(family.device)


def denoise(
    walk: Any, predict: Callable[[Tensor, Tensor], Tensor], latents: Tensor, **extra: object
) -> Tensor:
    """Latents (B, C, h, w) at the end of a scheduler's steps. ``extra``: for each step."""
    for timestep in walk.timesteps:
        prediction = predict(walk.scale_model_input(latents, timestep), timestep)
        latents = walk.step(prediction, timestep, latents, **extra).prev_sample
    return latents


def guided(
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


def guided_apart(
    family: Family, negative: Conditioning, positive: Conditioning, size: tuple[int, int], scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """The same of texts that may differ in length, one row for each picture of ``size`` (width, height in pixels)."""
    rows = len(positive.hidden)
    if negative.hidden.shape == positive.hidden.shape:
        both = Conditioning.joined([negative, positive])
        return guided(family, both, family.plain_geometry(rows * 2, *size), scale)
    geometry = family.plain_geometry(rows, *size)

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        steps = timestep.expand(len(latents))
        away, towards = (
            family.predict(latents, steps, text, geometry).float() for text in (negative, positive)
        )
        return away + scale * (towards - away)

    return predict


def to_images(pixels: Tensor) -> Iterator[Image]:
    """Pictures of pixels (B, 3, H, W) in -1..1."""
    from PIL import Image as Pictures

    values = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)
    for row in values.permute(0, 2, 3, 1).numpy():
        yield Pictures.fromarray(row)
