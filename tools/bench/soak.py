"""Trains SD 1.5 of random weights for long, over many bucket shapes, and watches the card's memory.

    python tools/bench/soak.py [--steps 2000] [--batch 2] [--json]

Every epoch has the same shapes in a new order, some of them seldom: the captured graphs come and go as in a run over
pictures of all sizes. A row for each tenth of the run tells what was allocated and reserved; after the first epoch
neither may grow.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from measuring import print_row
from train import WORKLOADS, make_batch, make_family, make_stepper

from lorapipe_engine.train.loop import update
from lorapipe_engine.train.optimizers import write_rates
from lorapipe_engine.train.step.forward import seed_step
from lorapipe_engine.train.step.speed import speed_up

# Width, height, and how many batches of it an epoch has: buckets of about 512 x 512 pixels in steps of 64.
SHAPES = (
    (512, 512, 12),
    (448, 576, 10),
    (576, 448, 8),
    (384, 640, 8),
    (640, 384, 6),
    (384, 576, 5),
    (576, 384, 4),
    (320, 704, 3),
    (704, 320, 2),
    (320, 768, 2),
    (256, 832, 1),
    (832, 256, 1),
)
ROWS = 10


def main(words: Sequence[str] | None = None) -> int:
    """1 if memory grew after the first epoch."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(words)
    rows = list(soak(options.steps, options.batch))
    for row in rows:
        print_row(row, as_json=options.json)
    first, last = rows[0], rows[-1]
    grown = {key: round(last[key] - first[key], 3) for key in ("allocated_gib", "peak_gib", "reserved_gib")}
    print(f"from the end of the first epoch to the last step: {grown}", file=sys.stderr)
    return int(grown["reserved_gib"] > 0)


def soak(steps: int, batch: int) -> list[dict[str, Any]]:
    """Train; what the card's memory was after the first epoch, and after each tenth of the steps."""
    device = torch.device("cuda")
    work = replace(WORKLOADS["A"], batch=batch)
    torch.manual_seed(1)
    family = make_family(work, device, torch.bfloat16)
    stepper = make_stepper(work, family)
    family.vae.to("cpu")
    speed_up(stepper, capture=True, say=lambda text: print(text, file=sys.stderr))
    plain = make_batch(work, family)
    batches = {}
    for width, height, _ in SHAPES:
        latents = torch.randn(batch, 8, height // 8, width // 8, device=device)
        latents[:, 4:] = latents[:, 4:].abs() * 0.1
        batches[width, height] = replace(plain, latents=latents)
    epoch = [(width, height) for width, height, count in SHAPES for _ in range(count)]
    draw = random.Random(0)
    order = [shape for _ in range(-(-steps // len(epoch))) for shape in draw.sample(epoch, len(epoch))]
    marks = {len(epoch), *(steps * tenth // ROWS for tenth in range(1, ROWS + 1))}
    rows, times, losses = [], [], []
    for step, shape in enumerate(order[:steps], 1):
        write_rates(stepper.optimizer, [1e-5] * len(stepper.optimizer.param_groups))
        seed_step(1, step)
        began = time.perf_counter()
        loss, _ = update(stepper, [batches[shape]])
        losses.append(float(loss))
        times.append(time.perf_counter() - began)
        if step in marks:
            rows.append(
                {
                    "step": step,
                    "median_ms": round(statistics.median(times) * 1e3, 1),
                    "slowest_ms": round(max(times) * 1e3),
                    "mean_loss": round(statistics.mean(losses), 4),
                    "graphs": len(stepper.graphs.shapes) if stepper.graphs else 0,
                    "allocated_gib": round(torch.cuda.memory_allocated() / 2**30, 3),
                    "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3),
                    "reserved_gib": round(torch.cuda.memory_reserved() / 2**30, 3),
                }
            )
            times, losses = [], []
    return rows


if __name__ == "__main__":
    sys.exit(main())
