"""Sentences among tags, as people write them, and tags that only look like sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorapipe_dataset.check.pictures.dataset import is_text


@pytest.fixture
def folder(draw: Any, tmp_path: Path) -> Path:
    """Ten pictures: ``set/5_mayu``."""
    for number in range(10):
        draw(f"set/5_mayu/{number}.png", f"mayu, cat, night, picture number {number}, hand on own hip")
    return tmp_path / "set" / "5_mayu"


@pytest.mark.parametrize(
    "caption",
    [
        "pencil art of a man fishing, beard",
        "photo of friend_name, smiling, outdoors",
        "mayu is sitting under a tree in the rain, night, cat",
    ],
)
def test_sentences_as_people_write_them_are_seen_among_tags(check: Any, folder: Path, caption: str) -> None:
    (folder / "0.txt").write_text(caption)
    done = check(folder.parent, "--resolution", 96, "--bucket-reso-steps", 32, "--json")
    (finding,) = done.found("mixed-style")
    assert [Path(path).name for path in finding["paths"]] == ["0.png"]


@pytest.mark.parametrize(
    "caption",
    [
        "heart of string, art deco",
        "hand on own hip, looking at viewer",
        "pixel art, portrait",
        "looking to the side, on the floor",
    ],
)
def test_tags_of_several_words_are_tags(caption: str) -> None:
    assert not is_text(caption)
