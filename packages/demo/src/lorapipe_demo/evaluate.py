"""Does the demo base obey? Draw fresh prompts with it, let the judge name the pictures, lay them out on a sheet.

python -m lorapipe_demo.evaluate [--sheet sheet.png]
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lorapipe_demo.scene import Scene, random_scene
from lorapipe_engine.bases import demo_base
from lorapipe_engine.command import say, tool_command

if TYPE_CHECKING:
    from PIL.Image import Image

SEED = 987_654_321  # another stream than any that pre-training drew from
SHEET = 100  # pictures on the sheet
ZOOM, GAP, COLUMNS = 2, 4, 10
# The share of pictures on which the prompt must be obeyed for the base to pass.
WANTED = {"background": 0.95, "hair_colour": 0.90, "clothes_colour": 0.90, "kind": 0.90}


@tool_command("lorapipe-demo-evaluate", examples="python -m lorapipe_demo.evaluate --sheet sheet.png")
@click.option("--prompts", type=click.IntRange(1), default=200, show_default=True, help="How many prompts.")
@click.option("--sheet", type=click.Path(path_type=Path), help="Write the first 100 pictures here, as a PNG.")
@click.option("--device", default=None, help="cuda or cpu. [default: the GPU if there is one]")
def evaluate(prompts: int, sheet: Path | None, device: str | None) -> int:
    """Draw fresh prompts with the demo base; print the share of pictures that obey, as JSON.

    Exit status 1 where a share is below what the base was made for.
    """
    from lorapipe_demo.judge import Judge
    from lorapipe_demo.sampling import Painter

    scenes = fresh_scenes(prompts)
    say(f"drawing {prompts} prompts ...")
    pictures = Painter(demo_base(), device).draw([", ".join(scene.tags()) for scene in scenes], None, seed=0)
    found = obeyed(scenes, Judge.load().look(pictures))
    if sheet:
        contact_sheet(pictures[:SHEET]).save(sheet)
        say(f"{sheet}")
    click.echo(json.dumps({name: round(share, 3) for name, share in found.items()}))
    return int(any(found.get(name, 1.0) < least for name, least in WANTED.items()))


def fresh_scenes(count: int) -> list[Scene]:
    """Scenes drawn from another random stream than the training pictures."""
    draw = random.Random(SEED)
    return [random_scene(draw) for _ in range(count)]


def obeyed(scenes: Sequence[Scene], answers: Sequence[dict[str, str]]) -> dict[str, float]:
    """Share of pictures on which the judge's answer is the prompt's, among those whose prompt speaks of the matter."""
    from lorapipe_demo.judge import NONE, true_answers

    truths = [true_answers(scene) for scene in scenes]
    found = {}
    for head in truths[0]:
        asked = [(t[head], a[head]) for t, a in zip(truths, answers, strict=True) if t[head] != NONE]
        if asked:
            found[head] = sum(truth == answer for truth, answer in asked) / len(asked)
    return found


def contact_sheet(pictures: Sequence[Image]) -> Image:
    """Pictures side by side, ten in a row."""
    from PIL import Image as Images

    side = 64 * ZOOM + GAP
    rows = -(-len(pictures) // COLUMNS)
    page = Images.new("RGB", (COLUMNS * side + GAP, rows * side + GAP), (250, 250, 252))
    for index, picture in enumerate(pictures):
        tile = picture.resize((64 * ZOOM, 64 * ZOOM), Images.Resampling.LANCZOS)
        page.paste(tile, (GAP + index % COLUMNS * side, GAP + index // COLUMNS * side))
    return page


if __name__ == "__main__":
    evaluate.main()
