"""A folder with all that people's folders hold: every tool counts it as the trainer does, and tells the rest alike."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from lorapipe_engine.datasets.described import dataset_notes
from lorapipe_engine.datasets.scan import scan
from lorapipe_engine.settings import DataSettings
from support.commands import run

MODEL = Path(__file__).parents[1] / "data" / "tagger" / "model"
HINT = " (--recursive takes them in)"
CAPTIONS = {
    "a.txt": "mayu, 1girl",
    "b.TXT": "mayu, capitals",
    "c.caption": "mayu, other",
    "d.png.txt": "mayu, own",
}
NOT_TRAINED = {
    "1 picture loose beside the concepts' folders",
    "1 picture in '0_off', whose name asks for 0 repeats",
    "1 picture in '_5', which has no number of repeats in front (rename it to '10__5')",
    "1 picture in '5 name', which has no number of repeats in front (rename it to '5_name')",
    "2 pictures in folders inside a concept's folder",
    "1 picture in a folder of masks",
    "3 pictures in folders that are no part of a dataset (.hidden, @eaDir, __MACOSX)",
    "1 picture hidden by a dot in front of the name (.hidden.png)",
    "3 pictures of kinds that are not trained (1 .gif, 1 no suffix, 1 .jpg_large): convert them to png",
}
TRAINED = ["a.png", "b.PNG", "c.jpg", "d.png", "e.webp", "k.png", "n.png"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder. Each picture has a colour of its own."""
    home = tmp_path_factory.mktemp("zoo")
    places = """10_mayu/a.png 10_mayu/b.PNG 10_mayu/c.jpg 10_mayu/d.png 10_mayu/e.webp 10_mayu/.hidden.png 10_mayu/f.gif
    10_mayu/@eaDir/thumb.jpg 10_mayu/sub/h.png 10_mayu/10_mayu/i.png 0_off/j.png 1_/k.png _5/l.png loose.png masks/p.png
    __MACOSX/q.png .hidden/o.png"""
    paths = [home / "ds" / place for place in places.split()]
    paths += [home / "ds" / "5 name" / "m.png", home / "elsewhere" / "n.png"]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((72, 80 + number), 90).convert("RGB").save(path)
    for name in ("g", "s.jpg_large"):
        (home / "ds" / "10_mayu" / name).write_bytes((home / "ds" / "10_mayu" / "a.png").read_bytes())
    for name, text in CAPTIONS.items():
        (home / "ds" / "10_mayu" / name).write_text(text)
    if sys.platform != "win32":
        (home / "ds" / "7_link").symlink_to("../elsewhere")
    else:
        (home / "elsewhere").rename(home / "ds" / "7_link")
    return home / "ds"


def reasons(text: str) -> set[str]:
    """What a tool says is not trained, without what it says in front."""
    lines = re.findall(r"(?:not trained|left out): (.*)", text)
    return {line.removesuffix(HINT) for line in lines}


def test_the_trainer(zoo: Path) -> None:
    data = DataSettings(train_data_dir=zoo, resolution=(64, 64))
    dataset = scan(data)
    assert [picture.path.name for picture in dataset.pictures] == TRAINED
    captions = {picture.path.name: picture.caption for picture in dataset.pictures}
    assert [captions[name] for name in TRAINED[:4]] == list(CAPTIONS.values())
    assert sum(folder.without_caption for folder in dataset.folders) == 3
    assert reasons("\n".join(dataset_notes(data, dataset))) == NOT_TRAINED


def test_lora_check(zoo: Path) -> None:
    done = run("lora-check", zoo, "--json", "--no-look")
    report = json.loads(done.stdout)
    assert report["trained"] == len(TRAINED)
    assert sum(row["captions"] for row in report["concepts"]) == len(CAPTIONS)
    hint = " (--recursive checks them)"
    assert {line.removeprefix(f"{zoo}: ").removesuffix(hint) for line in report["left_out"]} == NOT_TRAINED
    bare = [row["paths"] for row in report["findings"] if row["rule"] == "missing-caption"]
    missing = {Path(path).name for paths in bare for path in paths}
    assert missing == {"e.webp", "k.png", "n.png"}


def test_lora_repeats(zoo: Path, tmp_path: Path) -> None:
    done = run("lora-repeats", zoo, "-o", tmp_path / "out", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == len(TRAINED)
    assert reasons(done.stderr) == NOT_TRAINED
    assert f"3 of {len(TRAINED)} pictures have no caption" in done.stderr
    built = {path.name: path.read_text().strip() for path in (tmp_path / "out").glob("*_mayu/*.txt")}
    assert built == {"a.txt": "mayu, 1girl", "b.txt": "mayu, capitals", "d.txt": "mayu, own"}
    assert next((tmp_path / "out").glob("*_mayu/c.caption")).read_text() == "mayu, other"


def test_lora_tag(zoo: Path) -> None:
    pytest.importorskip("onnxruntime")
    done = run("lora-tag", zoo, "-r", "--dry-run", "--jsonl", "--model", MODEL, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(Path(row["path"]).name for row in rows if row.get("existing")) == TRAINED[:4]
    linked = 0 if sys.platform == "win32" else 1
    # All pictures but those of other programs, masks, and what lies behind a link; of any kind that can be opened.
    assert len(rows) == len(TRAINED) - linked + 8
    assert reasons(done.stderr) == NOT_TRAINED
    assert ("not tagged: 1 picture in '7_link', a link to a folder" in done.stderr) == bool(linked)


def test_lora_clean(zoo: Path) -> None:
    done = run("lora-clean", zoo, "-r", "--dry-run", "--trigger", "zoo", "--text")
    assert done.returncode == 0, done.stderr
    assert f"{len(CAPTIONS)} of {len(CAPTIONS)} captions would change" in done.stderr
    assert reasons(done.stderr) == NOT_TRAINED


@pytest.mark.parametrize("name", ["0_off", "_5"])
def test_nothing_to_train_is_an_error_with_the_mend(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "ds" / name
    folder.mkdir(parents=True)
    if name == "0_off":
        Image.new("RGB", (80, 80), "red").save(folder / "a.png")
    check = run("lora-check", tmp_path / "ds")
    assert check.returncode != 0
    if name == "0_off":
        assert "nothing-trained" in check.stdout
        assert "10_mayu" in check.stdout
    assert run("lora-repeats", tmp_path / "ds").returncode == 2
    with pytest.raises(Exception, match="rename '") as error:
        scan(DataSettings(train_data_dir=tmp_path / "ds"))
    assert f"'10_{name.removeprefix('0_')}'" in str(error.value)
    for command in ("lora-tag", "lora-clean"):
        empty = tmp_path / "ds" / "nothing"
        empty.mkdir(exist_ok=True)
        done = run(command, empty)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
