"""The README's pipe on a folder as people hold them: what it prints is what the page says, and what comes is right."""

from __future__ import annotations

import runpy
import shlex
from pathlib import Path

import pytest

pytest.importorskip("pty")
pytest.importorskip("onnxruntime")
pytest.importorskip("lorapipe_demo")

from lorapipe_engine.datasets.scan import scan
from lorapipe_engine.settings import DataSettings
from support.pages import Block, blocks_of, missing_line, run_in_terminal

ROOT = Path(__file__).resolve().parents[2]
HELD = runpy.run_path(str(ROOT / "tools/held_folder.py"))
STRAY = ("notes.txt", "sheet.psd")
CONCEPT = "shiina mayuri"


def blocks() -> list[Block]:
    """The page's blocks about this folder."""
    found = list(blocks_of(ROOT / "docs/datasets.md"))
    first = next(n for n, block in enumerate(found) if "held_folder.py" in block.commands[0].text)
    return found[first : first + 2]


def test_the_page_shows_the_readmes_pipe() -> None:
    readme = (ROOT / "packages/dataset-tools/README.md").read_text(encoding="utf-8")
    (line,) = (line for line in readme.splitlines() if line.startswith("lora-tag") and "|" in line)
    shown = blocks()[0].commands[1].text
    assert shown == line.replace("mirelune", f'"{CONCEPT}"').replace("train/", "dataset/")
    assert shlex.split(line)[1] == "./imgs"


@pytest.mark.slow
def test_what_comes_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    drawing, mending = blocks()
    for command in drawing.commands:
        done = run_in_terminal(command.text, tmp_path, tmp_path)
        assert done.status == 0, done.lines
        assert missing_line(command.printed, done.lines) is None, done.lines
    imgs, elsewhere = tmp_path / "imgs", tmp_path / "elsewhere"
    (folder,) = (tmp_path / "dataset").iterdir()
    assert folder.name == f"13_{CONCEPT}"
    stems = {path.stem for path in imgs.iterdir() if path.suffix == ".png"}
    assert len(stems) == 31
    # Each picture has one caption, with the trigger in front, beside it and in the dataset.
    wanted = {f"{stem}{'.caption' if stem == '05' else '.txt'}" for stem in stems}
    for place in (imgs, folder):
        texts = {p.name: p.read_text() for p in place.iterdir() if p.suffix in (".txt", ".caption")}
        if place == imgs:
            assert not texts.pop("notes.txt").startswith(CONCEPT)
        assert texts.keys() == wanted
        assert all(text.startswith(f"{CONCEPT}, ") for text in texts.values())
        assert texts["05.caption"] == f"{CONCEPT}, {HELD['BY_HAND']}"
    assert {path.name for path in folder.iterdir()} == wanted | {f"{stem}.png" for stem in stems}
    # The link is a picture of its own there, and a link still where it was; nothing was written where it leads.
    assert not (folder / "30.png").is_symlink()
    assert (folder / "30.png").read_bytes() == (elsewhere / "house.png").read_bytes()
    assert (imgs / "30.png").is_symlink()
    assert [path.name for path in elsewhere.iterdir()] == ["house.png"]
    # The stray files are as they were, and nowhere else.
    assert (imgs / "notes.txt").read_text() == "ask Ann for larger ones\n"
    assert (imgs / "sheet.psd").read_bytes().startswith(b"8BPS")
    assert not any((folder / name).exists() for name in STRAY)
    assert len(scan(DataSettings(train_data_dir=tmp_path / "dataset", resolution=(64, 64))).pictures) == 31
    # The copy goes where the page says so, and the one that was copied stays.
    for command in mending.commands:
        done = run_in_terminal(command.text, tmp_path, tmp_path)
        assert done.status == 0, done.lines
        assert missing_line(command.printed, done.lines) is None, done.lines
    assert {path.stem for path in folder.iterdir() if path.suffix == ".png"} == stems - {"07 (1)"}


@pytest.mark.slow
def test_each_odd_thing_is_told(tmp_path: Path) -> None:
    HELD["make"](tmp_path / "imgs")
    pipe = blocks()[0].commands[1].text
    told = "\n".join(run_in_terminal(pipe, tmp_path, tmp_path).lines)
    for words in (
        "1 picture of kinds that are not trained (1 .psd)",
        "captions without a picture: imgs/notes.txt",
        "1 had captions already",
        "1 picture is a copy of another, byte for byte (imgs/07 (1).png of imgs/07.png)",
        "1 picture is a link (imgs/30.png)",
        "captions have several suffixes (1 .caption, 30 .txt)",
    ):
        assert words in told, words
