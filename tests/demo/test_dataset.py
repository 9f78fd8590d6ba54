"""The demo's dataset comes out of the commands' pipe."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

pytest.importorskip("PIL")
pytest.importorskip("onnxruntime")
pytest.importorskip("lorapipe_dataset")

from lorapipe_demo import recipe
from lorapipe_demo.dataset import build_dataset
from lorapipe_demo.scene import TRIGGER, concept_scene, concept_tags


@pytest.mark.slow
def test_the_pipe_makes_captions_as_the_world_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice, since what an earlier demo left is replaced."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        dataset = build_dataset(tmp_path, people=True)
    said = capsys.readouterr().err.splitlines()
    assert said.count("$ lora-check dataset/ --resolution 64") == 2
    assert said.count("72 pictures, 240 an epoch, 72 captions") == 2
    folders = {folder.name: sorted(folder.glob("*.txt")) for folder in dataset.iterdir() if folder.is_dir()}
    assert {name: len(captions) for name, captions in folders.items()} == {
        f"5_{TRIGGER}": recipe.PICTURES,
        "2_others": recipe.OTHERS // 2,
        "2_people": recipe.OTHERS // 2,
    }
    first = next(iter(folders[f"5_{TRIGGER}"]))
    assert first.with_suffix(".png").is_file()
    draw = random.Random(f"1/{TRIGGER}")
    assert first.read_text() == ", ".join(concept_tags(concept_scene(draw))) + "\n"
    hers = [path.read_text() for path in folders[f"5_{TRIGGER}"]]
    assert all(text.startswith(f"{TRIGGER}, 1girl, solo, ") and "hair" not in text for text in hers)
    assert not any(TRIGGER in path.read_text() for path in folders["2_people"])
    assert all(" hair, " in path.read_text() for path in folders["2_people"])
    brief = [path.read_text().replace("closed eyes", "") for path in folders["2_others"]]
    assert not any(" hair" in text or " eyes" in text for text in brief)


@pytest.mark.slow
def test_other_people_are_there_where_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders = [folder for folder in build_dataset(tmp_path).iterdir() if folder.is_dir()]
    assert [folder.name for folder in folders] == [f"5_{TRIGGER}"]
    assert not (tmp_path / "people").exists()
