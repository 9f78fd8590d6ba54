"""Draw pictures with the model in training: classifier-free guidance around diffusers' samplers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lorapipe_engine.nn.sending import sent
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.families.text import Conditioning
from lorapipe_engine.train.objective.objective import Objective
from lorapipe_engine.train.sample.prompts import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image

Predict = Callable[[Tensor, Tensor], Tensor]  # of latents (B, C, h, w) at a time: a prediction


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
    halves = [conditioning.rows(slice(0, len(rows))), conditioning.rows(slice(len(rows), None))]
    guidance = Guidance.of(family, halves, (first.width, first.height), [row.scale for row in rows])
    predict = partial(evaluate_guided, family, guidance)
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
    return sent(torch.stack(noise), family.device)


def denoise(walk: Any, predict: Predict, latents: Tensor, **extra: object) -> Tensor:
    """Latents (B, C, h, w) at the end of a scheduler's steps. ``extra``: for each step."""
    for timestep in walk.timesteps:
        prediction = predict(walk.scale_model_input(latents, timestep), timestep)
        latents = walk.step(prediction, timestep, latents, **extra).prev_sample
    return latents


@dataclass(frozen=True)
class Guidance:
    """What guided evaluations of a batch of B pictures are told.

    ``texts``: negative and positive in one of 2·B rows, or one after the other, of B rows each, where they differ in
    length; ``geometry``: of as many rows. ``scale`` (B, 1, 1, 1): 0 is the negative prompt's answer, 1 the positive's.
    """

    texts: tuple[Conditioning, ...]
    geometry: Tensor | None
    scale: Tensor

    @classmethod
    def of(
        cls,
        family: Family,
        texts: Sequence[Conditioning],
        size: tuple[int, int],
        scales: Sequence[float],
    ) -> Guidance:
        """For pictures of ``size`` (width, height in pixels). ``texts``: the negative and the positive one."""
        negative, positive = texts
        if negative.hidden.shape == positive.hidden.shape:
            texts = [Conditioning.joined(texts)]
        scale = sent(torch.tensor(scales, dtype=torch.float32).view(-1, 1, 1, 1), family.device)
        return cls(tuple(texts), family.plain_geometry(len(texts[0].hidden), *size), scale)


def evaluate_guided(family: Family, guidance: Guidance, latents: Tensor, time: Tensor) -> Tensor:
    """Predictions (B, C, h, w) pushed away from the negative prompt, n + scale · (p - n), at one ``time``."""
    rows = torch.cat([latents] * (2 // len(guidance.texts)))
    times = time.expand(len(rows))
    parts = [family.predict(rows, times, text, guidance.geometry).float() for text in guidance.texts]
    away, towards = torch.cat(parts).chunk(2)
    return away + guidance.scale * (towards - away)


def picture_bytes(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in -1..1 -> bytes (B, H, W, 3), on the same device."""
    values = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return values.permute(0, 2, 3, 1).contiguous()


def to_images(pixels: Tensor) -> Iterator[Image]:
    """Pictures of pixels (B, 3, H, W) in -1..1."""
    from PIL import Image as Pictures

    for row in picture_bytes(pixels).cpu().numpy():
        yield Pictures.fromarray(row)
