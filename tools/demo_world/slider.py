"""Does a slider slide? Train a smile from pairs of prompts, and let the judge count faces at several strengths.

    python tools/demo_world/slider.py OUT                                # on a GPU, three seeds
    python tools/demo_world/slider.py OUT --seeds 1 --steps 40 --count 10    # a try, on a CPU

Prints, for each seed and strength, in how many pictures the judge sees a smile, and in how many it sees the hair, the
clothes and the background that the prompt asks for. OUT/slider.json holds the same. Ends with status 1 where the smiles
do not rise with the strength, or one of the others moves by more than five points.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

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
    by_seed, good = {}, True
    running = {seed: train(out, seed, options) for seed in range(42, 42 + options.seeds)}
    for seed, process in running.items():
        if process.wait():
            return process.returncode
        network = out / f"smile-{seed}.safetensors"
        rows = [look(network, strength, options) for strength in STRENGTHS]
        by_seed[str(seed)] = dict(zip(map(str, STRENGTHS), rows, strict=True))
        for strength, row in zip(STRENGTHS, rows, strict=True):
            print(
                f"seed {seed}, {strength:+g}: "
                + ", ".join(f"{name} {value:.1%}" for name, value in row.items())
            )
        wrong = faults(rows)
        good = good and not wrong
        print(f"seed {seed}: {'; '.join(wrong) or 'slides, and the rest stays'}", flush=True)
        (out / "slider.json").write_text(json.dumps(by_seed, indent=1) + "\n")
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
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
