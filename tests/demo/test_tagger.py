"""The demo's tagger finds what is in fresh pictures."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("PIL")
pytest.importorskip("onnxruntime")

from lorapipe_demo.painting.drawing import draw_scene
from lorapipe_demo.scene import TRIGGER, random_scene
from lorapipe_engine.models.bases import demo_asset

COUNT = 200


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.slow
def test_it_finds_the_tags_of_fresh_pictures(tmp_path: Path) -> None:
    """At the default thresholds, of pictures that no training run has drawn."""
    draw = random.Random("fresh pictures for the tagger")
    truth = []
    for index in range(COUNT):
        scene = random_scene(draw)
        draw_scene(scene, draw).save(tmp_path / f"{index:03d}.png")
        truth.append(set(scene.tags()))
    command = [sys.executable, "-m", "lorapipe_tagger", str(tmp_path), "--model", "demo"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = [set(json.loads(line)["caption"].split(", ")) for line in result.stdout.splitlines()]
    assert (tmp_path / "007.txt").read_text() == f"{json.loads(result.stdout.splitlines()[7])['caption']}\n"
    right = sum(len(one & other) for one, other in zip(truth, found, strict=True))
    assert right >= 0.95 * sum(map(len, truth))
    assert right >= 0.95 * sum(map(len, found))


def test_it_is_small_and_comes_as_wd_taggers_do() -> None:
    folder = demo_asset("tagger", "model")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2_000_000
    lines = (folder / "selected_tags.csv").read_text().splitlines()
    assert lines[:2] == ["tag_id,name,category,count", "0,general,9,40000"]
    assert not any(TRIGGER in line for line in lines)
