"""``--explain``: every score with what became of the tag."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .making import PICTURES, Tag, save_model, save_picture

CHANCES = {
    "general": (9, 0.9),
    "white_shirt": (0, 0.95),
    "shirt": (0, 0.9),
    "solo": (0, 0.8),
    "blue_sky": (0, 0.7),
    "cat": (0, 0.6),
    "dog": (0, 0.2),
    "rem_(re:zero)": (4, 0.99),
    "ram": (4, 0.5),
    "speck": (0, 0.002),
}


def test_every_score_has_its_reason(tag: Tag, tmp_path: Path) -> None:
    model = save_model(tmp_path / "m", CHANCES)
    words = ["--drop-overlap", "--exclude", "*sky", "--expand-character", "--replace", "cat=kitten"]
    result = tag(save_picture(tmp_path / "a.png"), "--explain", "--jsonl", *words, model=model)
    assert result.code == 0, result.err
    (record,) = result.records
    assert {row["tag"]: row["outcome"] for row in record["explain"]} == {
        "rem_(re:zero)": "kept as rem, re:zero (--expand-character)",
        "white_shirt": "kept",
        "general": "a rating (--rating)",
        "shirt": "--drop-overlap",
        "solo": "kept",
        "blue_sky": "--exclude",
        "cat": "kept as kitten (--replace)",
        "ram": "below 0.85",
        "dog": "below 0.35",
    }
    scores = [row["score"] for row in record["explain"]]
    assert scores == sorted(scores, reverse=True)
    assert not (tmp_path / "a.txt").exists()


def test_categories_that_are_off_and_models_that_disagree(tag: Tag, tmp_path: Path) -> None:
    one = save_model(tmp_path / "one", {"cat": (0, 0.9), "me": (1, 0.9)})
    two = save_model(tmp_path / "two", {"cat": (0, 0.1), "me": (1, 0.9)})
    words = ["--model", one, "--model", two, "--combine", "intersection", "--explain", "--jsonl"]
    (record,) = tag(save_picture(tmp_path / "a.png"), *words, model=None).records
    outcomes = {row["tag"]: row["outcome"] for row in record["explain"]}
    assert outcomes == {"me": "artist tags are off", "cat": "too few models (--combine)"}


@pytest.mark.parametrize("piped", [True, False])
def test_people_get_a_table_even_in_a_pipe(tag: Tag, tmp_path: Path, piped: bool) -> None:
    picture = Path(shutil.copy(PICTURES / "rgba.png", tmp_path))
    result = tag(picture if not piped else "-", "--explain", stdin=str(picture).encode())
    first, second, *_ = result.out.decode().splitlines()
    assert first.startswith(f"{picture}: ;), hands on own face")
    assert second.split() == ["0.994", "rating", "sensitive", "a", "rating", "(--rating)"]
