"""The demo's dataset, made of bare pictures by the commands that users have for it."""

from __future__ import annotations

import shutil
from pathlib import Path

from lorapipe_demo import recipe
from lorapipe_demo.concept import draw_pictures
from lorapipe_demo.programs import run
from lorapipe_demo.scene import TRIGGER, concept_scene
from lorapipe_engine.command import say

HERS, OTHERS = "imgs", "others"
DROP_FILE = "drop.txt"


def build_dataset(folder: Path) -> Path:
    """Draw her and some other people, tag, clean and count them; the dataset's folder.

    What an earlier demo left there is replaced.
    """
    for name in (HERS, OTHERS, "dataset"):
        shutil.rmtree(folder / name, ignore_errors=True)
    draw_pictures(folder / HERS, concept_scene, pictures=recipe.PICTURES, seed=1)
    draw_pictures(folder / OTHERS, recipe.ordinary_scene, pictures=recipe.OTHERS, seed=9)
    (folder / DROP_FILE).write_text("".join(f"{tag}\n" for tag in recipe.HER_OWN), encoding="utf-8")
    say(
        f"drew {recipe.PICTURES} pictures of her and {recipe.OTHERS} of other people, without a word beside them"
    )
    check = ("lora-check", "dataset/", "--resolution", recipe.RESOLUTION)
    run(
        tag(HERS),
        ("lora-clean", "--trigger", TRIGGER, "--drop-file", DROP_FILE),
        ("lora-repeats", "-o", "dataset/", "--kind", "character"),
        then=check,
        folder=folder,
    )
    # The others are described as briefly as she is, or everybody who is would have her hair.
    report = run(
        tag(OTHERS),
        ("lora-clean", "--drop-file", DROP_FILE),
        ("lora-repeats", "-o", "dataset/", "--repeats", recipe.OTHER_REPEATS, "--force"),
        then=check,
        folder=folder,
    )
    say(report)
    return folder / "dataset"


def tag(name: str) -> tuple[str, ...]:
    """The command that tags a folder of pictures."""
    return ("lora-tag", f"./{name}", "--model", "demo")
