"""Does the shipped demo base obey? 200 fresh prompts, drawn by the engine and named by the judge.

python tools/demo_world/examine.py [SHEET.png] [--count 200]
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from PIL import Image

from lorapipe_demo.judge import HEADS, Judge, true_answers
from lorapipe_demo.sampling import Painter
from lorapipe_demo.scene import random_scene
from lorapipe_engine.models.bases import demo_base

SIDE = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sheet", type=Path, nargs="?", help="write a contact sheet of the first 60 there")
    parser.add_argument("--count", type=int, default=200)
    options = parser.parse_args()
    pictures = examine(demo_base(), options.count)
    if options.sheet:
        page = Image.new("RGB", (10 * SIDE, 6 * SIDE), "white")
        for index, picture in enumerate(pictures[:60]):
            page.paste(
                picture.resize((SIDE - 4, SIDE - 4), Image.Resampling.LANCZOS),
                (index % 10 * SIDE, index // 10 * SIDE),
            )
        page.save(options.sheet)


def examine(base: Path, count: int = 200) -> list[Image.Image]:
    """Draw fresh prompts with a base, and print how often each thing that was asked for is seen; the pictures."""
    draw = random.Random(987_654_321)
    scenes = [random_scene(draw) for _ in range(count)]
    pictures = Painter(base, None).draw([", ".join(scene.tags()) for scene in scenes], None)
    answers = Judge.load().look(pictures)
    for name in HEADS:
        pairs = [
            (true_answers(scene)[name], answer[name]) for scene, answer in zip(scenes, answers, strict=True)
        ]
        asked = [pair for pair in pairs if pair[0] != "none"]
        if asked and name != "style":
            right = sum(want == got for want, got in asked)
            print(f"{name:<16}{right:>4} of {len(asked):>3}  {right / len(asked):6.1%}")
    return pictures


if __name__ == "__main__":
    main()
