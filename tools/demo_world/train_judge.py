"""Train the judge anew, on freshly drawn pictures and the shipped base's VAE.

python tools/demo_world/train_judge.py OUT.safetensors [--seconds 60] [--pictures 60000]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from pictures import draw_set, judge_picture, near_miss
from pretrain import SEED, judge_inputs, keep
from train_parts import train_judge

from lorapipe_demo.judge import HEADS
from lorapipe_engine.models.bases import demo_base
from lorapipe_engine.train.base.load import load_base


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--pictures", type=int, default=60_000)
    options = parser.parse_args()
    torch.manual_seed(SEED)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vae = load_base(demo_base()).vae.to(device).requires_grad_(False)
    exam = judge_inputs(draw_set(options.pictures, SEED + 1, judge_picture, None), device)
    judge = train_judge(*exam, vae, options.seconds, 512 if device.type == "cuda" else 64, print)
    for pick in (judge_picture, near_miss):
        pixels, answers = judge_inputs(draw_set(1000, SEED + 2, pick, None), device)
        scores = judge(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1)
        right = {
            name: (scores[name].argmax(1) == answers[:, i]).float().mean().item()
            for i, name in enumerate(HEADS)
        }
        print(pick.__name__, json.dumps({name: round(share, 4) for name, share in right.items()}))
    keep(judge, options.out)


if __name__ == "__main__":
    main()
