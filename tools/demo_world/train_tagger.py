"""Train the demo's tagger on freshly drawn pictures of the ordinary world, and write it as WD14 taggers come.

python tools/demo_world/train_tagger.py FOLDER [--steps 3600] [--pictures 40000]

FOLDER gets model.onnx and selected_tags.csv. A quarter of an hour on one CPU core. The held-out character and style
are not among the pictures: the tagger knows them as little as the base model does.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from export_tagger import write_tagger
from torch import Tensor, nn
from torch.nn import functional as F
from train_parts import rate_at

from lorapipe_demo.painting.drawing import draw_scene
from lorapipe_demo.scene import Scene, all_tags, random_scene

SEED = 20261
RATINGS = ("general", "sensitive", "questionable", "explicit")
# Width and stride of each convolution of 3 x 3; 64 x 64 pixels come in, 4 x 4 go out.
LAYERS = ((24, 2), (32, 1), (48, 2), (64, 1), (64, 2), (96, 1), (64, 2))
HIDDEN = 160
BATCH, RATE = 64, 3e-3


class TaggerNetwork(nn.Module):
    """Pictures (B, 3, 64, 64), BGR in 0..255, to scores (B, tags) before the sigmoid."""

    def __init__(self, tags: int) -> None:
        super().__init__()
        widths = (3, *(width for width, _ in LAYERS))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
            for (before, after), (_, stride) in zip(pairwise(widths), LAYERS, strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width, _ in LAYERS)
        self.hidden = nn.Linear(widths[-1] * 16, HIDDEN)
        self.head = nn.Linear(HIDDEN, tags)

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels / 127.5 - 1
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x)))
        return self.head(F.relu(self.hidden(x.flatten(1))))


def draw_tagged(count: int, seed: int) -> tuple[Tensor, list[list[str]]]:
    """Pixels (N, 3, 64, 64) BGR, uint8, and the true tags of each picture."""
    jobs = [(seed * 1_000_003 + start, min(500, count - start)) for start in range(0, count, 500)]
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        parts = pool.map(_draw_part, jobs, chunksize=1)
    pixels = np.concatenate([part for part, _ in parts])[..., ::-1]
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), [row for _, rows in parts for row in rows]


def _draw_part(job: tuple[int, int]) -> tuple[np.ndarray, list[list[str]]]:
    seed, count = job
    draw = random.Random(seed)
    scenes: list[Scene] = [random_scene(draw) for _ in range(count)]
    pixels = np.stack([np.asarray(draw_scene(scene, draw)) for scene in scenes])
    return pixels, [
        [RATINGS[0], *scene.tags()] for scene in scenes
    ]  # nothing in this world is for adults only


def train(pixels: Tensor, truth: Tensor, steps: int) -> TaggerNetwork:
    """Binary cross-entropy for each tag, on pictures that are varied a little."""
    network = TaggerNetwork(truth.shape[1]).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.02)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step / steps, RATE)
        pick = torch.randint(len(pixels), (BATCH,))
        loss = F.binary_cross_entropy_with_logits(network(vary(pixels[pick])), truth[pick], reduction="sum")
        optimizer.zero_grad()
        (loss / BATCH).backward()
        optimizer.step()
        if step % 200 == 0:
            print(f"step {step}, loss {loss.item() / BATCH:.3f}", flush=True)
    return network.eval()


def vary(pixels: Tensor) -> Tensor:
    """What scaling, JPEG and screens do to a picture, about."""
    rows = pixels.to(memory_format=torch.channels_last).float()
    rows = rows + 5 * torch.rand(len(rows), 1, 1, 1) * torch.randn_like(rows)
    rows = rows * (1 + 0.04 * torch.randn(len(rows), 1, 1, 1))
    return torch.roll(rows, torch.randint(-1, 2, (2,)).tolist(), (2, 3)).clamp(0, 255)


@torch.inference_mode()
def examine(network: TaggerNetwork, pixels: Tensor, truth: Tensor, tags: list[str]) -> None:
    """Recall and precision at 0.35 on fresh pictures, and the tags that go wrong most."""
    told = torch.cat([network(rows.float()).sigmoid() for rows in pixels.split(256)]) >= 0.35
    real = truth > 0.5
    right = (told & real).sum().item()
    print(f"recall {right / real.sum().item():.2%}, precision {right / told.sum().item():.2%}")
    for name, wrong in (("missed", real & ~told), ("false", told & ~real)):
        worst = Counter(
            {tag: int(n) for tag, n in zip(tags, wrong.sum(0).tolist(), strict=True)}
        ).most_common(12)
        print(name, ", ".join(f"{tag} {count}" for tag, count in worst if count))


def main() -> None:
    """Draw, train, examine, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--pictures", type=int, default=40_000)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    pixels, captions = draw_tagged(options.pictures, SEED)
    counts = Counter(tag for caption in captions for tag in caption)
    tags = [*RATINGS, *all_tags()]  # `lora-tag --order model` then writes captions as the world's own are
    print(f"{len(tags)} tags, {len(pixels)} pictures", flush=True)
    network = train(pixels, one_hot(captions, tags), options.steps)
    fresh, fresh_captions = draw_tagged(2000, SEED + 1)
    examine(network, fresh, one_hot(fresh_captions, tags), tags)
    rows = [(tag.replace(" ", "_"), 9 if tag in RATINGS else 0, counts[tag]) for tag in tags]
    write_tagger(options.folder, network, rows)


def one_hot(captions: list[list[str]], tags: list[str]) -> Tensor:
    """(N, tags) of zeros and ones."""
    place = {tag: at for at, tag in enumerate(tags)}
    rows = torch.zeros(len(captions), len(tags))
    for row, caption in enumerate(captions):
        rows[row, [place[tag] for tag in caption]] = 1
    return rows


if __name__ == "__main__":
    main()
