"""Every edit byte for byte, taken back byte for byte: in the editor, and on the command line."""

from __future__ import annotations

import codecs
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("waitress")
pytest.importorskip("werkzeug")

from support.editor import Editor, editing, held

# Name of the picture, what its caption holds (None: there is none), the edit, and what it holds then.
ROWS: list[tuple[str, bytes | None, dict[str, Any], bytes | None]] = [
    ("add", b"cat, hat\n", {"action": "add", "tags": ["red scarf"]}, b"cat, hat, red scarf\n"),
    ("front", b"cat, hat", {"action": "add", "tags": ["mina"], "where": "front"}, b"mina, cat, hat"),
    # A tag that is there already, however it is written, comes no second time, and nothing is tidied for it.
    (
        "there",
        b"Long_Hair,hat ,  x\r\n",
        {"action": "add", "tags": ["long hair", "y"]},
        b"Long_Hair,hat ,  x, y\n",
    ),
    ("same", b"\xef\xbb\xbfcat,hat\r\n", {"action": "add", "tags": ["Hat"]}, b"\xef\xbb\xbfcat,hat\r\n"),
    ("crlf", b"cat, hat\r\nsmall cat, hat\r\n", {"action": "remove", "tags": ["hat"]}, b"cat\nsmall cat\n"),
    ("bom", codecs.BOM_UTF8 + b"cat, hat", {"action": "remove", "tags": ["hat"]}, b"cat"),
    (
        "utf16",
        "мина, hat\r\n".encode("utf-16"),
        {"action": "remove", "tags": ["hat"]},
        "мина".encode(),
    ),
    ("none", None, {"action": "add", "tags": ["cat", "hat"]}, b"cat, hat\n"),
    ("nothing", None, {"action": "remove", "tags": ["hat"]}, None),
    ("empty", b"", {"action": "add", "tags": ["cat"]}, b"cat"),
    ("last", b"hat\n", {"action": "remove", "tags": ["hat"]}, b"\n"),
    (
        "rename",
        b"solo, cat, solo_focus\n",
        {"action": "rename", "from": "Solo", "to": "alone"},
        b"alone, cat, solo_focus\n",
    ),
    ("both", b"solo, alone, cat\n", {"action": "rename", "from": "solo", "to": "alone"}, b"alone, cat\n"),
    (
        "spelling",
        b"Long_hair, cat\n",
        {"action": "rename", "from": "long hair", "to": "long hair"},
        b"long hair, cat\n",
    ),
    (
        "mark",
        b"mina, cat ||| hat, tree ||| best\n",
        {"action": "rename", "from": "mina", "to": "nina"},
        b"nina, cat ||| hat, tree ||| best\n",
    ),
    (
        "mark2",
        b"mina ||| hat, tree ||| best\n",
        {"action": "add", "tags": ["x"]},
        b"mina ||| hat, tree, x ||| best\n",
    ),
    (
        "mark3",
        b"mina ||| hat, tree\n",
        {"action": "add", "tags": ["x"], "where": "front"},
        b"x, mina ||| hat, tree\n",
    ),
    (
        "lines",
        b"solo, hat\n\nA cat in the rain.\nhat, solo\n",
        {"action": "rename", "from": "solo", "to": "alone"},
        b"alone, hat\nA cat in the rain.\nhat, alone\n",
    ),
    # A sentence is not cut at its commas.
    (
        "said",
        b"A cat sits on the roof, 1,000 people watch it, solo\n",
        {"action": "remove", "tags": ["solo"]},
        b"A cat sits on the roof, 1,000 people watch it\n",
    ),
    (
        "said2",
        b"solo, A cat sits on the roof, 1,000 people watch it\n",
        {"action": "rename", "from": "solo", "to": "al\\one"},
        b"al\\one, A cat sits on the roof, 1,000 people watch it\n",
    ),
    (
        "said3",
        b"A cat sits on the roof of a house.\n",
        {"action": "add", "tags": ["solo", "hat"]},
        b"A cat sits on the roof of a house. solo, hat\n",
    ),
    ("move", b"a, b, c\n", {"action": "move", "tag": "c", "where": "front"}, b"c, a, b\n"),
    ("move2", b"a, b, c\n", {"action": "move", "tag": "A", "where": "end"}, b"b, c, a\n"),
    ("move3", b"a,b\n", {"action": "move", "tag": "a", "where": "front"}, b"a,b\n"),
    (
        "order",
        b"a, b ||| c\nd, e\n",
        {"action": "order", "tags": ["c", "|||", "b", "a"]},
        b"c ||| b, a\nd, e\n",
    ),
    # By hand nothing but the ends of lines is tidied.
    (
        "hand",
        b"a\n",
        {"action": "caption", "text": " b,c \r\n\r\nA cat, 1,000 times \u200b"},
        b"b,c\nA cat, 1,000 times\n",
    ),
    ("hand2", None, {"action": "caption", "text": "мина"}, "мина\n".encode()),
    ("hand3", b"a, b\r\n", {"action": "caption", "text": "a, b"}, b"a, b\r\n"),
    # No patterns: a tag is a name.
    ("face", b"*_*, what?, whats\n", {"action": "remove", "tags": ["what?", "*_*"]}, b"whats\n"),
    ("weight", b"cat, (hat:1.2)\n", {"action": "remove", "tags": ["hat"]}, b"cat\n"),
    (
        "choice",
        b"{red|blue, green} hat, tree\n",
        {"action": "remove", "tags": ["tree"]},
        b"{red|blue, green} hat\n",
    ),
]
UNTOUCHED = {"same", "nothing", "move3", "hand3"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "set/5_cat"
    folder.mkdir(parents=True)
    for number, (name, before, _, _) in enumerate(ROWS):
        Image.new("RGB", (64, 48), (number * 7, 80, 90)).save(folder / f"{name}.png")
        if before is not None:
            (folder / f"{name}.txt").write_bytes(before)
    return folder


@pytest.mark.slow
def test_every_edit_byte_for_byte(folder: Path) -> None:
    before = held(folder)
    with editing(folder.parent) as editor:
        for name, old, edit, new in ROWS:
            more = {key: value for key, value in edit.items() if key != "action"}
            answer = editor.edit(edit["action"], f"{name}.png", **more)
            path = folder / f"{name}.txt"
            assert (path.read_bytes() if path.exists() else None) == new, name
            assert (answer["conflicts"], answer["errors"]) == ([], []), name
            assert (answer["run"] is None) == (name in UNTOUCHED) == (old == new), name
            assert [Path(one["path"]).stem for one in answer["changed"]] == ([] if old == new else [name])
        # Nothing else was changed, and all edits are taken back one by one.
        changed = {name for name, data in held(folder).items() if data != before.get(name)}
        assert changed == {f"{name}.txt" for name, old, _, new in ROWS if old != new}
        count = len(ROWS) - len(UNTOUCHED)
        assert count > 26
        for left in reversed(range(count)):
            answer = editor.undo()
            assert (answer["errors"], answer["conflicts"]) == ([], [])
            assert (answer["undo"] or {"count": 0})["count"] == left
        assert held(folder) == before
        assert editor.post("api/undo").json == {"error": "there is nothing to take back"}
        # And done again, all of them.
        for _ in range(count):
            assert editor.post("api/redo").json["errors"] == []
        assert {
            name: (folder / f"{name}.txt").read_bytes() for name, _, _, new in ROWS if new is not None
        } == {name: new for name, _, _, new in ROWS if new is not None}
        assert editor.post("api/redo").status == 400
    assert not (folder / "nothing.txt").exists()


@pytest.mark.slow
def test_the_command_line_takes_each_edit_back(folder: Path, check: Any) -> None:
    """Also while the editor runs, which sees it."""
    before = held(folder)
    with editing(folder.parent) as editor:
        rows = [row for row in ROWS if row[0] not in UNTOUCHED][:4]
        for name, _, edit, _ in rows:
            editor.edit(edit["action"], f"{name}.png", **{k: v for k, v in edit.items() if k != "action"})
        revision = editor.state()["revision"]
        done = check(folder.parent, "--undo")
        assert done.code == 0, done.err
        answer = editor.wait_for(revision)
        assert [Path(one["path"]).stem for one in answer["changed"]] == [rows[-1][0]]
        assert answer["undo"]["count"] == len(rows) - 1
        named = editor.edit("add", "add.png", tags=["named"])["run"]
        editor.edit("add", "front.png", tags=["later"])
        assert check(folder.parent, "--undo", "--run", named).code == 0
        # The one that is left of the two is taken back here, then those before it.
        assert "later" in editor.state()["undo"]["label"]
        for _ in range(4):
            editor.undo()
        assert held(folder) == before
        assert editor.state()["undo"] is None
    assert check(folder.parent, "--undo").code == 2


@pytest.mark.slow
def test_a_selection_is_one_edit(folder: Path) -> None:
    """Those that have nothing to change stay byte for byte, and one step takes it all back."""
    before = held(folder)
    with editing(folder.parent) as editor:
        answer = editor.edit("rename", **{"from": "hat", "to": "cap"})
        expected = {
            name for name, old, _, _ in ROWS if old is not None and b"hat" in old.replace(b"what", b"")
        }
        expected |= {"utf16"}
        expected -= {"choice"}  # red|blue, green hat is another tag
        assert {Path(one["path"]).stem for one in answer["changed"]} == expected
        assert answer["undo"] == {"count": 1, "label": f"rename hat to cap on {len(expected)} captions"}
        assert {name for name, data in held(folder).items() if data != before[name]} == {
            f"{name}.txt" for name in expected
        }
        editor.undo()
    assert held(folder) == before


@pytest.mark.slow
def test_captions_with_other_names(tmp_path: Path) -> None:
    """What is whose caption is what every tool here reads; a new one gets the wanted suffix."""
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("a.png", "b.jpg", "b.png", "c.png", "d.PNG", "e.png"):
        Image.new("RGB", (64, 48)).save(folder / name)
    (folder / "a.caption").write_bytes(b"cat\r\n")
    (folder / "b.txt").write_bytes(b"two\n")  # of both
    (folder / "c.png.txt").write_bytes(b"own\n")
    (folder / "d.TXT").write_bytes(b"loud\n")
    with editing(folder, "--caption-extension", ".cap") as editor:
        answer = editor.edit("add", tags=["hat"])
        assert answer["errors"] == []
        files = {
            name: data
            for name, data in held(folder).items()
            if Path(name).suffix.lower() not in (".png", ".jpg")
        }
        assert files == {
            "a.caption": b"cat, hat\n",
            "b.txt": b"two, hat\n",
            "c.png.txt": b"own, hat\n",
            "d.TXT": b"loud, hat\n",
            "e.cap": b"hat\n",
        }
        # A caption of two pictures is shown at both.
        assert [one["caption"] for one in answer["changed"]].count("two, hat") == 2
    with editing(folder, "--caption-extension", "caption") as editor:
        assert editor.edit("add", "e.png", tags=["more"])["errors"] == []
    assert (folder / "e.caption").read_bytes() == b"more\n"


@pytest.mark.slow
def test_what_cannot_be_written_is_told_and_the_others_go_on(folder: Path) -> None:
    (folder / "add.txt").write_bytes("мина, hat\n".encode("cp1251"))
    (folder / "front.txt").unlink()
    (folder / "front.txt").mkdir()
    other = folder.parent / "2_dog"
    other.mkdir()
    shutil.copy(folder / "bom.png", other / "dog.png")
    (other / "dog.txt").write_bytes(b"dog, hat\n")
    (other / ".lorapipe").write_bytes(b"in the way")
    before = held(folder.parent)
    with editing(folder.parent) as editor:
        answer = editor.edit("remove", tags=["hat"])
        assert len(answer["changed"]) > 10
        texts = {editor.state()["pictures"][one["id"]]["path"]: one["text"] for one in answer["errors"]}
        assert set(texts) == {
            str(Path(name)) for name in ("5_cat/add.png", "5_cat/front.png", "2_dog/dog.png")
        }
        assert "a folder, not a file" in texts[str(Path("5_cat/front.png"))]
        assert "add.txt: not UTF-8 (byte 0); lora-clean --encoding NAME" in texts[str(Path("5_cat/add.png"))]
        assert "2_dog: its files cannot be changed" in texts[str(Path("2_dog/dog.png"))]
        assert not any(str(folder.parent) in text for text in texts.values())
        assert (other / "dog.txt").read_bytes() == before[str(Path("2_dog/dog.txt"))]
        editor.undo()
    assert held(folder.parent) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the administrator may write all")
def test_a_folder_that_may_not_be_written(folder: Path) -> None:
    folder.chmod(0o555)
    try:
        with editing(folder.parent) as editor:
            answer = editor.edit("add", "add.png", tags=["x"])
            assert "cannot be changed (Permission denied)" in answer["errors"][0]["text"]
    finally:
        folder.chmod(0o755)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on files there")
def test_a_file_that_finds_no_room_stays_as_it_is(folder: Path) -> None:
    """As on a full disk: the others go on, and all is taken back."""
    (folder / "add.txt").write_bytes(b"hat, " + b"x" * 2000)
    before = held(folder)
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))"
    with Editor(folder.parent, before=limit) as editor:
        answer = editor.edit("remove", "add.png", "front.png", tags=["hat"])
        assert [(one["id"], one["text"]) for one in answer["errors"]] == [
            (
                editor.pictures()["add.png"]["id"],
                f"{Path('5_cat/add.txt')}: cannot be written (File too large)",
            )
        ]
        assert {name for name, data in held(folder).items() if data != before[name]} == {"front.txt"}
        assert editor.undo()["errors"] == []
    assert held(folder) == before


# -------------------------------------------------------------------------------- left out


@pytest.mark.slow
def test_left_out_where_no_tool_trains_it(folder: Path, check: Any) -> None:
    """By a dot in front of the name, with its caption; the survey that all tools share says so."""
    from lorapipe_engine.pictures.layout import survey

    shutil.copy(folder / "add.png", folder / "add.jpg")  # shares its caption
    before = held(folder)
    with editing(folder.parent) as editor:
        answer = editor.edit("out", "add.png", "bom.png", "none.png", out=True)
        assert answer["errors"] == []
        assert {(one["path"], one["out"]) for one in answer["changed"]} >= {
            (str(Path("5_cat/bom.png")), True)
        }
        now = held(folder)
        assert {*before} - {*now} == {"add.png", "bom.png", "bom.txt", "none.png"}
        assert {*now} - {*before} == {".add.png", ".bom.png", ".bom.txt", ".none.png"}
        told = survey(folder.parent).left_out()
        assert "3 pictures hidden by a dot in front of the name (.add.png, .bom.png, .none.png)" in told
        # It can still be seen and edited, and comes back with its caption.
        picture = next(one for one in editor.state()["pictures"] if one["path"].endswith("bom.png"))
        assert (picture["out"], picture["caption"]) == (True, "cat, hat")
        assert editor.get(picture["image"]).status == 200
        editor.edit("remove", "bom.png", tags=["hat"])
        assert (folder / ".bom.txt").read_bytes() == b"cat"
        assert editor.undo()["errors"] == []
        assert editor.edit("out", "bom.png", out=False)["changed"][0]["out"] is False
        assert editor.state()["undo"] == {"count": 2, "label": "take in 1 picture"}
        assert editor.edit("out", "bom.png", out=False)["run"] is None  # it is in already
        for _ in range(2):
            assert editor.undo()["errors"] == []
        assert held(folder) == before
        editor.post("api/redo")
        assert held(folder) == now
    # A new server finds them, and the command line takes it back.
    with editing(folder.parent) as editor:
        out = {Path(one["path"]).name for one in editor.state()["pictures"] if one["out"]}
        assert out == {"add.png", "bom.png", "none.png"}
        assert check(folder.parent, "--undo").code == 0
        assert not any(one["out"] for one in editor.state()["pictures"])
    assert held(folder) == before


@pytest.mark.slow
def test_nothing_is_put_in_the_place_of_another(folder: Path) -> None:
    (folder / ".add.png").write_bytes(b"somebody's")
    before = held(folder)
    with editing(folder.parent) as editor:
        answer = editor.edit("out", "add.png", out=True)
        assert "5_cat/add.png: cannot be moved to 5_cat/.add.png" in answer["errors"][0]["text"]
    assert held(folder) == before


# -------------------------------------------------------------------------------- layouts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("paths", "words", "there"),
    [
        (["a.png", "b.png"], [], {"a.png", "b.png"}),
        (["5_cat/a.png", "2_dog/b.png", "loose.png"], [], {"5_cat/a.png", "2_dog/b.png", "loose.png"}),
        (["5_cat/a.png", "5_cat/far/b.png"], ["--recursive"], {"5_cat/a.png", "5_cat/far/b.png"}),
    ],
)
def test_layouts_of_folders(tmp_path: Path, paths: list[str], words: list[str], there: set[str]) -> None:
    for name in paths:
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(path)
        path.with_suffix(".txt").write_text("cat\n")
    with editing(tmp_path / "set", *words) as editor:
        pictures = editor.state()["pictures"]
        assert str(tmp_path).encode() not in editor.get("api/state").body + editor.get().body
        assert {Path(one["path"]).as_posix() for one in pictures} == there
        answer = editor.edit("add", tags=["hat"])
        assert len(answer["changed"]) == len(there)
        assert len({(tmp_path / "set" / name).with_suffix(".txt").read_text() for name in paths}) == 1
        # The report judges what is there now.
        assert sorted(tag for tag, _ in answer["tags"]) == ["cat", "hat"]
        editor.undo()
    assert sys.platform == "win32" or not list((tmp_path / "set").rglob(".lorapipe"))
