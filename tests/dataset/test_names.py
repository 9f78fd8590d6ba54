"""Names of files that people have and that say something else than they seem to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from lorapipe_engine.datasets.described import dataset_notes
from lorapipe_engine.datasets.scan import scan
from lorapipe_engine.settings import DataSettings
from support.commands import run

MODEL = Path(__file__).parents[1] / "data" / "tagger" / "model"


def draw(folder: Path, names: Iterable[str]) -> Path:
    """A folder of pictures, no two alike."""
    folder.mkdir(parents=True)
    for number, name in enumerate(names):
        Image.effect_noise((72, 80 + number), 90).convert("RGB").save(folder / name, "PNG")
    return folder


def test_pictures_under_names_of_browsers_are_told(tmp_path: Path) -> None:
    """As sites and browsers save them; a text that begins like a bitmap is none."""
    folder = draw(tmp_path / "ds" / "2_mayu", ["a.png", "b.jpg_large", "c.png.crdownload", "d.jpg~orig"])
    (folder / "b.txt").write_text("mayu, of the large one")
    (folder / "a.tags").write_text("BMW, car")
    done = run("lora-check", tmp_path / "ds", "--no-look", "--json")
    report = json.loads(done.stdout)
    said = "3 pictures of kinds that are not trained (1 .jpg_large, 1 .crdownload, 1 .jpg~orig): convert them to png"
    assert report["left_out"] == [f"{tmp_path / 'ds'}: {said}"]
    rules = {row["rule"]: row["paths"] for row in report["findings"]}
    assert "orphan-caption" not in rules, "a repair would take the caption of b away"
    data = DataSettings(train_data_dir=tmp_path / "ds", resolution=(64, 64))
    assert dataset_notes(data, scan(data)) == [f"{tmp_path / 'ds'}: not trained: {said}"]


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_a_caption_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    """The run and its dry run say so, and undo has no trouble with what was never written."""
    pytest.importorskip("onnxruntime")
    folder = draw(tmp_path / "2_mayu", ["a.png", "b.png"])
    (folder / "a.txt").symlink_to("moved.txt")
    for more in (["--dry-run"], []):
        done = run("lora-tag", folder, "--model", MODEL, "--device", "cpu", *more)
        assert done.returncode == 1
        assert "a.txt: a link to a file that is not there; remove it" in done.stderr
    assert (folder / "b.txt").exists()
    done = run("lora-tag", "--undo", folder)
    assert (done.returncode, (folder / "b.txt").exists()) == (0, False), done.stderr
    assert (folder / "a.txt").is_symlink()


def test_a_number_without_a_name_is_no_concept(tmp_path: Path) -> None:
    """lora-train has an empty caption for it, and lora-check says so."""
    draw(tmp_path / "ds" / "3_", ["a.png"])
    assert [row.caption for row in scan(DataSettings(train_data_dir=tmp_path / "ds")).pictures] == [""]
    done = run("lora-check", tmp_path / "ds", "--no-look")
    assert "a.png: would be empty" in done.stdout
    assert "pictures were not decoded; --look decodes them" in done.stdout


def test_capitals_that_are_longer_in_small_letters(tmp_path: Path) -> None:
    """A dotted capital I of Turkish is two letters then: two pictures of one stem are known by it all the same."""
    folder = draw(tmp_path / "ds" / "2_mayu", ["\u0130a.png", "\u0130a.jpg"])
    (folder / "\u0130a.txt").write_text("mayu, of both")
    (folder / "\u0130a.png.txt").write_text("mayu, its own")
    data = DataSettings(train_data_dir=tmp_path / "ds", resolution=(64, 64))
    captions = {row.path.suffix: row.caption for row in scan(data).pictures}
    assert captions == {".png": "mayu, its own", ".jpg": "mayu, of both"}
