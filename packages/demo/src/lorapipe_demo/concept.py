"""The held-out concepts as a training set: pictures and captions in a folder ``N_concept``."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from lorapipe_demo.scene import (
    STYLE_TRIGGER,
    TRIGGER,
    Scene,
    concept_scene,
    concept_tags,
    style_scene,
    style_tags,
)

CONCEPTS: dict[str, tuple[Callable[[random.Random], Scene], Callable[[Scene], list[str]]]] = {
    TRIGGER: (concept_scene, concept_tags),
    STYLE_TRIGGER: (style_scene, style_tags),
}


def draw_concept(root: Path, concept: str, *, pictures: int, repeats: int, seed: int) -> Path:
    """Draw ``pictures`` of a held-out concept into ``root/N_concept``, with captions; returns that folder.

    Pictures of an earlier call with the same numbers are written anew, the same to the byte.
    """
    pick, tags = CONCEPTS[concept]
    draw = random.Random(f"{seed}/{concept}")
    folder = root / f"{repeats}_{concept}"
    folder.mkdir(parents=True, exist_ok=True)
    from lorapipe_demo.painting.drawing import draw_scene

    for index in range(pictures):
        scene = pick(draw)
        draw_scene(scene, draw).save(folder / f"{index:03d}.png")
        (folder / f"{index:03d}.txt").write_text(", ".join(tags(scene)) + "\n", encoding="utf-8")
    return folder
