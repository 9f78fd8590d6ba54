"""Does a slider slide? Train a smile from pairs of prompts, and let the judge count faces at several strengths.

    python tools/demo_world/slider.py OUT                                # three seeds; on a GPU beside each other
    python tools/demo_world/slider.py OUT --seeds 1 --steps 40 --count 10    # a try, on a CPU

Prints, for each seed and strength, in how many pictures the judge sees a smile, and in how many it sees the hair, the
clothes and the background that the prompt asks for. Each seed is a line of OUT/slider.jsonl as soon as it is done: the
same call, given again, does what is left. OUT/slider.md has the means. Ends with status 1 where the smiles do not rise
with the strength, or one of the others moves by more than five points.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from kept_rows import add_row, read_rows

from lorapipe_demo.judge import Judge, true_answers
from lorapipe_demo.sampling import Painter
from lorapipe_demo.scene import EXPRESSIONS, Scene, random_person
from lorapipe_engine.models.bases import demo_base
from lorapipe_engine.nn.attach import detach
from lorapipe_engine.train.network.files.apply import attach_file
from lorapipe_engine.train.sample.draw import draw
from lorapipe_engine.train.sample.prompts import Prompt

STRENGTHS = (-1.0, 0.0, 1.0, 2.0)
KEPT = ("hair_colour", "hair_style", "clothes", "clothes_colour", "background")
MOST_MOVED = 0.05
FULL = 0.97
PAIRS = """# More and less of a smile, whoever it is.
[[pairs]]
target = "1girl, solo"
positive = "1girl, solo, smile"
negative = "1girl, solo, frown"
strength = {strength}

[[pairs]]
target = "1boy, solo"
positive = "1boy, solo, smile"
negative = "1boy, solo, frown"
strength = {strength}
"""


def main() -> int:
    options = read_options()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    (out / "smile.toml").write_text(PAIRS.format(strength=options.strength))
    lines, seeds = out / "slider.jsonl", range(42, 42 + options.seeds)
    asked = {name: value for name, value in vars(options).items() if name not in ("out", "seeds", "jobs")}
    done = {row["seed"]: row for row in read_rows(lines) if row["asked"] == asked}
    waiting = [seed for seed in seeds if seed not in done]
    print(f"seeds: {len(seeds)}, done before: {len(seeds) - len(waiting)}", flush=True)
    began, total = time.monotonic(), len(waiting)
    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for number in range(1, total + 1):
            while waiting and len(running) < options.jobs:
                running[waiting[0]] = train(out, waiting[0], options)
                waiting.pop(0)
            seed = next(iter(running))
            if status := running[seed].wait():
                return status
            del running[seed]
            figures = [look(out / f"smile-{seed}.safetensors", strength, options) for strength in STRENGTHS]
            done[seed] = {"seed": seed, "asked": asked, "figures": figures}
            add_row(lines, done[seed])
            spent = (time.monotonic() - began) / 60
            left = spent / number * (total - number)
            print(f"{number} of {total}, {spent:.0f} min, about {left:.0f} min left: seed {seed}", flush=True)
    finally:
        for process in running.values():
            process.kill()
    return report([done[seed] for seed in seeds], out / "slider.md")


def report(rows: Sequence[dict[str, Any]], table: Path) -> int:
    """Tell the figures of all seeds, and write their means; the exit status."""
    good = True
    for row in rows:
        seed, figures = row["seed"], row["figures"]
        for strength, shares in zip(STRENGTHS, figures, strict=True):
            words = ", ".join(f"{name} {value:.1%}" for name, value in shares.items())
            print(f"seed {seed}, {strength:+g}: {words}")
        wrong = faults(figures)
        good = good and not wrong
        print(f"seed {seed}: {'; '.join(wrong) or 'slides, and the rest stays'}")
    names = list(rows[0]["figures"][0])
    lines = [f"| strength | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
    for place, strength in enumerate(STRENGTHS):
        means = [mean(row["figures"][place][name] for row in rows) for name in names]
        lines.append(f"| {strength:+g} | " + " | ".join(f"{value:.1%}" for value in means) + " |")
    table.write_text("\n".join(lines) + "\n")
    return 0 if good else 1


def faults(rows: Sequence[dict[str, float]]) -> list[str]:
    """What is not as it should be in the figures of the strengths."""
    smiles = [row["smile"] for row in rows]
    # Nearly all pictures cannot become more.
    rise = all(one < other or min(one, other) > FULL for one, other in pairwise(smiles))
    wrong = [] if rise else ["smiles do not rise"]
    base = rows[STRENGTHS.index(0.0)]
    for name in KEPT:
        moved = max(abs(row[name] - base[name]) for row in rows)
        if moved > MOST_MOVED:
            wrong.append(f"{name} moves by {moved:.1%}")
    return wrong


def train(out: Path, seed: int, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Begin to train the slider of a seed."""
    words = (
        f"--base demo --slider {out}/smile.toml --output_dir {out} --output_name smile-{seed} --seed {seed}"
    )
    words += (
        f" --max_train_steps {options.steps} --train_batch_size {options.batch} --resolution 64 --overwrite"
    )
    words += f" --network_dim {options.rank} --network_train_unet_only --unet_lr {options.rate} --quiet"
    words += " --lr_scheduler cosine --max_token_length 75 --save_every_n_epochs 1000"
    words += f" --device {options.device}" if options.device else ""
    code = "from lorapipe_engine.cli import train_main; train_main()"
    return subprocess.Popen([sys.executable, "-c", code, *words.split()], stdout=subprocess.DEVNULL)


def scenes_of(count: int) -> list[Scene]:
    rng = random.Random(4242)
    return [random_person(rng) for _ in range(count)]


def look(path: Path, strength: float, options: argparse.Namespace) -> dict[str, float]:
    """The judge's figures of a strength: the share of smiles, and of what the prompts ask for."""
    painter, judge = Painter(demo_base(), options.device), Judge.load()
    scenes = scenes_of(options.count)
    prompts = [", ".join(tag for tag in scene.tags() if tag not in EXPRESSIONS) for scene in scenes]
    attach_file(painter.family, path).set_multiplier(strength)
    try:
        rows = [
            Prompt(text=text, width=64, height=64, steps=20, scale=5.0, seed=1000 + index)
            for index, text in enumerate(prompts)
        ]
        answers = judge.look(
            list(draw(painter.family, painter.objective, rows, sampler="ddim", batch_size=20))
        )
    finally:
        detach(painter.family.parts.values())
    figures = {"smile": sum(answer["expression"] == "smile" for answer in answers) / len(answers)}
    for name in KEPT:
        pairs = [
            (true_answers(scene)[name], answer[name]) for scene, answer in zip(scenes, answers, strict=True)
        ]
        figures[name] = sum(wanted == seen for wanted, seen in pairs) / len(pairs)
    return figures


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--strength", type=float, default=0.3, help="of the pairs")
    parser.add_argument("--count", type=int, default=120, help="pictures of a strength")
    parser.add_argument("--device", default=None)
    parser.add_argument("--jobs", type=int, default=0, help="trainings at a time [all on a card, else one]")
    options = parser.parse_args()
    on_card = options.device != "cpu" and torch.cuda.is_available()
    options.jobs = options.jobs or (options.seeds if on_card else 1)
    return options


if __name__ == "__main__":
    sys.exit(main())
