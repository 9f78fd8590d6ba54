"""The pictures that a file of many captions names, by names with dots and without suffixes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.commands import run

Clean = Callable[..., Any]
ROWS = {"Dr. Who": "blue box", "h.v2": "hat", "h.v3": "scarf", "plain": "cat", "whole.png": "dog"}
FILES = {"Dr. Who": "Dr. Who.png", "h.v2": "h.v2.png", "h.v3": "h.v3.jpg", "plain": "plain.webp"}


@pytest.fixture
def document(tmp_path: Path) -> Path:
    """Metadata as sd-scripts writes it; its pictures are not there yet."""
    path = tmp_path / "dot" / "m.json"
    path.parent.mkdir()
    path.write_text(json.dumps({name: {"tags": tags} for name, tags in ROWS.items()}))
    return path


def add_pictures(folder: Path) -> None:
    for number, name in enumerate(ROWS):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / FILES.get(name, name))


@pytest.mark.parametrize("there", [True, False])
def test_a_dot_in_a_stem_begins_no_suffix(clean: Clean, document: Path, tmp_path: Path, there: bool) -> None:
    if there:
        add_pictures(document.parent)
    for words in (("--to", "txt", "-o", tmp_path / "caps"), ("--to", "txt")):
        done = clean(document, *words)
        assert done.code == 0, done.err
        folder = tmp_path / "caps" if "-o" in words else document.parent
        captions = {path.name: path.read_text() for path in folder.glob("*.txt")}
        assert captions == {f"{name.removesuffix('.png')}.txt": f"{tags}\n" for name, tags in ROWS.items()}


def test_the_picture_of_a_stem_goes_on(clean: Clean, document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_pictures(document.parent)
    monkeypatch.chdir(document.parent.parent)
    wanted = [FILES.get(name, name) for name in ROWS]
    records = clean("dot/m.json").records
    assert [record["path"] for record in records] == [str(Path("dot", name)) for name in wanted]
    assert [record["caption"] for record in records] == list(ROWS.values())
    assert clean("dot/m.json", "--to", "metadata", "-o", "dot/metadata.jsonl", "--text").code == 0
    lines = (document.parent / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["file_name"] for line in lines] == wanted
    # The document itself keeps its names.
    assert clean("dot/m.json", "--add", "x", "--text").code == 0
    assert list(json.loads(document.read_text())) == list(ROWS)


def test_stems_of_a_document_become_a_dataset(clean: Clean, document: Path, tmp_path: Path) -> None:
    add_pictures(document.parent)
    lines = clean(document).out
    done = run("lora-repeats", "-o", tmp_path / "train", "--repeats", "2", "--name", "who", stdin=lines)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "train").glob("2_who/*.txt")) == [
        "Dr. Who.txt",
        "h.v2.txt",
        "h.v3.txt",
        "plain.txt",
        "whole.txt",
    ]


def test_a_picture_beside_the_document_is_meant_before_one_elsewhere(
    clean: Clean, document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document.write_text(json.dumps({"plain.png": {"tags": "cat"}, "dot/sub": {"tags": "x"}}))
    for place in (document.parent, tmp_path):
        (place / "plain.png").write_bytes(b"png")
    (document.parent / "sub.png").write_bytes(b"png")
    monkeypatch.chdir(tmp_path)
    paths = [record["path"] for record in clean("dot/m.json").records]
    assert paths == [str(Path("dot", name)) for name in ("plain.png", "sub.png")]


def test_a_record_without_a_suffix_has_a_caption_of_its_own(clean: Clean, tmp_path: Path) -> None:
    (tmp_path / "h.txt").write_text("another's")
    lines = [json.dumps({"path": str(tmp_path / name), "caption": name}) for name in ("h.v2", "h.v3")]
    assert clean("-", stdin="\n".join(lines)).code == 0
    assert {path.name: path.read_text() for path in tmp_path.glob("*.txt")} == {
        "h.txt": "another's",
        "h.v2.txt": "h.v2\n",
        "h.v3.txt": "h.v3\n",
    }
