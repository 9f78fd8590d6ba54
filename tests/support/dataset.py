"""A dataset of drawn pictures for runs that are short."""

from __future__ import annotations

from pathlib import Path

import pytest


def draw_data(places: pytest.TempPathFactory, *, pictures: int, repeats: int = 1, seed: int = 3) -> Path:
    """A folder with a concept's pictures and captions, as lora-train takes it."""
    from lorapipe_demo.concept import draw_concept
    from lorapipe_demo.scene import TRIGGER

    root = places.mktemp("data")
    draw_concept(root, TRIGGER, pictures=pictures, repeats=repeats, seed=seed)
    return root
