"""Does the base obey? Draw fresh prompts, let the judge name what came out, and lay the pictures out on a sheet."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from diffusers import DDIMScheduler
from pictures import token_row
from PIL import Image
from torch import Tensor
from train_parts import SCALE, Denoiser

from lorapipe_demo.judge import HEADS, JudgeNetwork, true_answers
from lorapipe_demo.scene import Scene, random_scene


@torch.no_grad()
def sample(
    model: Denoiser,
    vae: torch.nn.Module,
    ids: Tensor,
    empty: Tensor,
    *,
    second_last: bool,
    steps: int = 30,
    guidance: float = 5.0,
) -> Tensor:
    """Pixels (B, 3, 64, 64) in -1..1 for token ids (B, 77)."""
    device, count = ids.device, len(ids)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    scheduler.set_timesteps(steps)
    latents = torch.randn(count, 4, 16, 16, generator=torch.Generator().manual_seed(0)).to(device)
    both = torch.cat([empty.expand(count, -1), ids])
    hidden = model.encode(both, torch.full((2 * count,), second_last, device=device))
    for step in scheduler.timesteps:
        guess = model.unet(
            torch.cat([latents, latents]), step.to(device).expand(2 * count), hidden
        ).sample.float()
        negative, positive = guess.chunk(2)
        latents = scheduler.step(negative + guidance * (positive - negative), step, latents).prev_sample
    return vae.decode(latents / SCALE).sample.float().clamp(-1, 1)


def fresh_scenes(count: int, seed: int = 987_654_321) -> list[Scene]:
    """Scenes that no training picture was drawn from (another random stream)."""
    draw = random.Random(seed)
    return [random_scene(draw) for _ in range(count)]


@torch.no_grad()
def obeyed(judge: JudgeNetwork, pixels: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of pictures on which the judge agrees with the prompt, for each head that the prompt speaks of."""
    scores = judge(pixels)
    by_name = {}
    for name, choices in HEADS.items():
        picks = [choices[i] for i in scores[name].argmax(1).tolist()]
        rows = [(pick, true_answers(scene)[name]) for pick, scene in zip(picks, scenes, strict=True)]
        asked = [row for row in rows if row[1] != "none"] if name not in ("style", "character") else rows
        by_name[name] = sum(a == b for a, b in asked) / max(1, len(asked))
    return by_name


def prompts_to_ids(folder: object, prompts: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids of prompts (B, 77), and of the empty prompt (1, 77)."""
    row = token_row(folder)  # type: ignore[arg-type]
    return torch.tensor([row(p) for p in prompts], device=device), torch.tensor([row("")], device=device)


def sheet(pixels: Tensor, columns: int = 10, zoom: int = 2) -> Image.Image:
    """The pictures side by side."""
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().permute(0, 2, 3, 1).numpy()
    side = 64 * zoom + 4
    page = Image.new("RGB", (columns * side + 4, -(-len(values) // columns) * side + 4), (250, 250, 252))
    for index, row in enumerate(values):
        tile = Image.fromarray(row).resize((64 * zoom, 64 * zoom), Image.Resampling.LANCZOS)
        page.paste(tile, (4 + index % columns * side, 4 + index // columns * side))
    return page
