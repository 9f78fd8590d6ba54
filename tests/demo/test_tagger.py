"""The demo's tagger finds what is in fresh pictures, and its pipe makes a dataset of bare ones."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("PIL")
pytest.importorskip("onnxruntime")
pytest.importorskip("lorapipe_dataset")

from lorapipe_demo import recipe
from lorapipe_demo.dataset import build_dataset
from lorapipe_demo.drawing import draw_scene
from lorapipe_demo.scene import TRIGGER, random_scene
from lorapipe_tagger.models import demo_model

COUNT = 200


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


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
    folder = demo_model()
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 2_000_000
    lines = (folder / "selected_tags.csv").read_text().splitlines()
    assert lines[:2] == ["tag_id,name,category,count", "0,general,9,40000"]
    assert not any(TRIGGER in line for line in lines)


def test_the_pipe_makes_a_dataset_of_bare_pictures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    dataset = build_dataset(tmp_path)
    hers, others = sorted(dataset.iterdir(), key=lambda folder: "others" in folder.name)
    assert (hers.name, others.name) == (f"8_{TRIGGER}", f"{recipe.OTHER_REPEATS}_others")
    captions = [path.read_text().strip().split(", ") for path in sorted(hers.glob("*.txt"))]
    assert len(captions) == len(list(hers.glob("*.png"))) == recipe.PICTURES
    assert {caption[0] for caption in captions} == {TRIGGER}
    her_own = ("hair", "twintails", "double bun", "purple eyes")
    for caption in captions:
        assert {"1girl", "solo"} <= set(caption)
        assert not [tag for tag in caption for word in her_own if word in tag]
    assert not any(TRIGGER in path.read_text() for path in others.glob("*.txt"))
    assert len(list(others.glob("*.txt"))) == recipe.OTHERS
    talk = capfd.readouterr().err
    line = f"lora-tag ./imgs --model demo | lora-clean --trigger {TRIGGER} --drop-file drop.txt | "
    assert f"$ {line}lora-repeats -o dataset/ --kind character && lora-check dataset/" in talk
