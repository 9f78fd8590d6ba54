"""The demo's dataset, made of bare pictures by the commands that users have for it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from lorapipe_demo import recipe
from lorapipe_demo.programs import run, say_lines
from lorapipe_demo.scene import TRIGGER, Scene, concept_scene
from lorapipe_engine.command.tool import say

HERS, BRIEF, WHOLE = "imgs", "others", "people"
DROP_FILE = "drop.txt"


def build_dataset(folder: Path, *, people: bool = False) -> Path:
    """Draw her, tag, clean and count the pictures; the dataset's folder ``folder/dataset``.

    ``people``: other people too, half of them described as briefly as she is. What an earlier demo left there is
    replaced. Raises ProblemFound if a command fails.
    """
    for name in (HERS, BRIEF, WHOLE, "dataset"):
        shutil.rmtree(folder / name, ignore_errors=True)
    draw_pictures(folder, people=people)
    (folder / DROP_FILE).write_text("".join(f"{tag}\n" for tag in recipe.HER_OWN), encoding="utf-8")
    drop = ("--drop-file", DROP_FILE, "--keep", recipe.KEPT)
    hers = ("--kind", "character", "--per-epoch", recipe.PER_EPOCH)
    run(
        tag(HERS),
        ("lora-clean", "--trigger", TRIGGER, *drop),
        ("lora-repeats", "-o", "dataset/", *hers),
        folder=folder,
    )
    if people:
        others = ("lora-repeats", "-o", "dataset/", "--repeats", recipe.OTHER_REPEATS, "--force")
        run(tag(BRIEF), ("lora-clean", *drop), others, folder=folder)
        run(tag(WHOLE), others, folder=folder)
    say_lines(run(("lora-check", "dataset/", "--resolution", recipe.RESOLUTION), folder=folder))
    return folder / "dataset"


def tag(name: str) -> Sequence[str]:
    """The command that tags a folder of pictures, in the order in which the world's captions have their tags."""
    return ("lora-tag", f"./{name}", "--model", "demo", "--order", "model")


def draw_pictures(folder: Path, *, people: bool) -> None:
    """Draw a folder of her pictures, and with ``people`` two of others, without captions."""
    hers, others = random.Random(f"1/{TRIGGER}"), random.Random(9)
    for index in range(recipe.PICTURES):
        _draw(folder / HERS, index, concept_scene(hers), hers)
    say(f"drew {recipe.PICTURES} pictures of {TRIGGER}, no words beside them")
    if not people:
        return
    for index in range(recipe.OTHERS):
        place = folder / (BRIEF if index < recipe.OTHERS // 2 else WHOLE)
        _draw(place, index, recipe.ordinary_scene(others), others)
    say(f"drew {recipe.OTHERS} pictures of other people")


def _draw(place: Path, index: int, scene: Scene, draw: random.Random) -> None:
    from lorapipe_demo.painting.drawing import draw_scene

    place.mkdir(parents=True, exist_ok=True)
    draw_scene(scene, draw).save(place / f"{index:03d}.png")
