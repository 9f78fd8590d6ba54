"""What others change meanwhile: another program, a second tab, a second editor. Nothing is overwritten, all is seen."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("waitress")
pytest.importorskip("werkzeug")

from support.editor import Editor, editing, held

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "set/5_cat"
    folder.mkdir(parents=True)
    for name in ("a", "b", "c", "d"):
        Image.new("RGB", (64, 48)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_bytes(f"{name}, solo\n".encode())
    return folder


def versions_of(editor: Editor) -> dict[int, Any]:
    return {one["id"]: one["version"] for one in editor.state()["pictures"]}


def rename(editor: Editor, versions: dict[int, Any]) -> dict[str, Any]:
    body = {"action": "rename", "from": "solo", "to": "alone", "ids": list(versions), "versions": versions}
    return editor.post("api/edit", **body).json


def test_what_another_program_wrote_is_left_and_shown(folder: Path) -> None:
    with editing(folder.parent) as editor:
        versions = versions_of(editor)
        (folder / "b.txt").write_bytes(b"b, by an editor, solo\r\n")
        (folder / "c.txt").unlink()
        answer = rename(editor, versions)
        conflicts = {one["id"]: one for one in answer["conflicts"]}
        assert {number: one["caption"] for number, one in conflicts.items()} == {
            1: "b, by an editor, solo",
            2: None,
        }
        assert [one["id"] for one in answer["changed"] if one["id"] not in conflicts] == [0, 3]
        assert (folder / "b.txt").read_bytes() == b"b, by an editor, solo\r\n"
        assert not (folder / "c.txt").exists()
        assert (folder / "a.txt").read_bytes() == b"a, alone\n"
        assert "on 2 captions" in answer["undo"]["label"]
        # With the version that came with the conflict it goes.
        again = rename(editor, {1: conflicts[1]["version"]})
        assert (again["conflicts"], (folder / "b.txt").read_bytes()) == ([], b"b, by an editor, alone\n")


def test_a_caption_by_hand_that_is_old_keeps_both_texts(folder: Path) -> None:
    """The disk has the one, the answer says which; the page has the other still."""
    with editing(folder.parent) as editor:
        old = versions_of(editor)[0]
        (folder / "a.txt").write_bytes(b"theirs\n")
        body = {"action": "caption", "text": "mine", "ids": [0], "versions": {0: old}}
        answer = editor.post("api/edit", **body).json
        assert answer["conflicts"][0]["caption"] == "theirs"
        assert (answer["run"], answer["undo"]) == (None, None)
        assert (folder / "a.txt").read_bytes() == b"theirs\n"
        # A caption that was not there when it was seen, and is now.
        (folder / "b.txt").unlink()
        assert versions_of(editor)[1] is None
        (folder / "b.txt").write_bytes(b"new\n")
        answer = editor.post("api/edit", action="add", tags=["x"], ids=[1], versions={1: None}).json
        assert (answer["conflicts"][0]["caption"], (folder / "b.txt").read_bytes()) == ("new", b"new\n")


def test_the_same_size_and_time_are_no_disguise(folder: Path) -> None:
    path = folder / "a.txt"
    past = time.time() - 60
    os.utime(path, (past, past))
    with editing(folder.parent) as editor:
        revision, versions = editor.state()["revision"], versions_of(editor)
        path.write_bytes(b"z, solo\n")
        os.utime(path, (past, past))
        assert rename(editor, versions)["conflicts"][0]["caption"] == "z, solo"
        assert path.read_bytes() == b"z, solo\n"
        assert editor.wait_for(revision)["changed"]


def test_changes_tell_what_others_did(folder: Path, check: Any) -> None:
    with editing(folder.parent) as editor:
        revision = editor.state()["revision"]
        assert editor.get(f"api/changes?since={revision}").json["changed"] == []
        (folder / "a.txt").write_bytes(b"a, other\n")
        answer = editor.wait_for(revision)
        assert [(one["id"], one["caption"]) for one in answer["changed"]] == [(0, "a, other")]
        assert ["other", 1] in answer["tags"]
        assert (answer["gone"], answer["added"]) == ([], False)

        # A picture that comes, one that goes, one that changes; numbers stay.
        shutil.copy(folder / "a.png", folder / "aa.png")
        (folder / "aa.txt").write_bytes(b"late\n")
        (folder / "d.png").unlink()
        answer = editor.wait_for(answer["revision"])
        assert [(one["id"], one["path"], one["caption"]) for one in answer["changed"]] == [
            (4, str(Path("5_cat/aa.png")), "late")
        ]
        assert (answer["gone"], answer["added"]) == ([3], True)
        assert any(rule["id"] == "orphan-caption" for rule in answer["rules"])
        Image.new("RGB", (96, 48), "red").save(folder / "b.png")
        before = editor.state()["pictures"][1]["image"]
        assert editor.get(before).body == editor.get("thumb/1").body
        later = editor.wait_for(answer["revision"])["changed"][0]
        assert (later["id"], later["size"]) == (1, [96, 48])
        assert len({later["image"], answer["changed"][0]["image"]}) == 2
        answer = editor.post("api/edit", action="add", tags=["x"], ids=[3], versions={3: None}).json
        assert answer["errors"] == [{"id": 3, "text": "the picture is gone"}]
        assert editor.get("picture/3").status == 404
        # A whole folder that comes.
        (folder.parent / "2_dog").mkdir()
        shutil.copy(folder / "a.png", folder.parent / "2_dog/dog.png")
        assert editor.wait_for(answer["revision"])["changed"][0]["concept"] == "dog"


def test_a_second_tab_sees_the_first_and_overwrites_nothing(folder: Path) -> None:
    with editing(folder.parent) as editor:
        first = second = versions_of(editor)
        revision = editor.state()["revision"]
        assert rename(editor, {0: first[0]})["errors"] == []
        body = {"action": "caption", "text": "from the second tab", "ids": [0], "versions": {0: second[0]}}
        answer = editor.post("api/edit", **body).json
        assert answer["conflicts"][0]["caption"] == "a, alone"
        assert (folder / "a.txt").read_bytes() == b"a, alone\n"
        assert editor.wait_for(revision)["changed"][0]["caption"] == "a, alone"


def test_an_undo_leaves_what_was_changed_since(folder: Path) -> None:
    before = held(folder)
    with editing(folder.parent) as editor:
        rename(editor, versions_of(editor))
        (folder / "b.txt").write_bytes(b"b, theirs\n")
        answer = editor.undo()
        assert [(one["id"], one["caption"]) for one in answer["conflicts"]] == [(1, "b, theirs")]
        assert (answer["errors"], answer["undo"]) == ([], None)
        assert held(folder) == {**before, "b.txt": b"b, theirs\n"}
        # Done again, it does not touch that one either, nor one that was changed after it was taken back.
        (folder / "c.txt").write_bytes(b"c, theirs\n")
        answer = editor.post("api/redo").json
        assert [one["id"] for one in answer["conflicts"]] == [2]
        assert {name: data for name, data in held(folder).items() if name.endswith(".txt")} == {
            "a.txt": b"a, alone\n",
            "b.txt": b"b, theirs\n",
            "c.txt": b"c, theirs\n",
            "d.txt": b"d, alone\n",
        }


def test_two_editors_of_one_folder(folder: Path) -> None:
    before = held(folder)
    with editing(folder.parent) as one, editing(folder.parent) as other:
        revision, old = other.state()["revision"], versions_of(other)
        rename(one, versions_of(one))
        answer = other.post("api/edit", action="add", tags=["x"], ids=list(old), versions=old).json
        assert (len(answer["conflicts"]), answer["run"]) == (4, None)
        assert other.wait_for(revision)["changed"][0]["caption"] == "a, alone"
        assert other.edit("add", "a.png", tags=["x"])["errors"] == []
        # Each takes back its own, the later one first.
        assert one.undo()["conflicts"][0]["caption"] == "a, alone, x"
        assert (folder / "a.txt").read_bytes() == b"a, alone, x\n"
        assert other.undo()["conflicts"] == []
    assert held(folder) == {**before, "a.txt": b"a, alone\n"}
