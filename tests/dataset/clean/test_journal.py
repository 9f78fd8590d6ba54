"""Changes are journalled, and taken back byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorapipe_engine.changes.journal import HIDDEN, Change, Journal, locked
from lorapipe_engine.changes.undo import undo
from lorapipe_engine.errors import InputError


@pytest.fixture(autouse=True, params=["one by one", "staged"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here is run for few changes and as for many."""
    if request.param == "staged":
        monkeypatch.setattr("lorapipe_engine.changes.journal.MANY", 1)
    return str(request.param)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def change(folder: Path, changes: list[Change], tool: str = "lora-clean") -> dict[str, str]:
    with Journal(tool).folder(folder) as desk:
        return {name: str(error) for name, error in desk.write(changes).items()}


def test_write_and_undo(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfold\r\n")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe broken")
    before = snapshot(tmp_path)
    failures = change(
        tmp_path,
        [
            Change("a.txt", before["a.txt"], b"new\n"),
            Change("b.txt", before["b.txt"], b""),
            Change("c.txt", None, b"fresh"),
        ],
    )
    assert not failures
    assert snapshot(tmp_path) == {"a.txt": b"new\n", "b.txt": b"", "c.txt": b"fresh"}
    done = undo([tmp_path], "lora-clean")
    assert {path.name for path in done.restored} == {"a.txt", "b.txt", "c.txt"}
    assert snapshot(tmp_path) == before
    assert not (tmp_path / HIDDEN).exists()
    with pytest.raises(InputError, match="no run of lora-clean"):
        undo([tmp_path], "lora-clean")


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    contents=st.lists(
        st.lists(st.none() | st.binary(max_size=12), min_size=3, max_size=3), min_size=1, max_size=4
    )
)
def test_every_run_is_undone_in_turn(
    tmp_path_factory: pytest.TempPathFactory, contents: list[list[bytes | None]]
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    (folder / "0").write_bytes(b"zero")
    states = [snapshot(folder)]
    for row in contents:
        now = snapshot(folder)
        wanted = [
            (str(i), data) for i, data in enumerate(row) if data is not None and data != now.get(str(i))
        ]
        if not wanted:
            continue
        assert not change(folder, [Change(name, now.get(name), data) for name, data in wanted])
        states.append(snapshot(folder))
    for state in states[-2::-1]:
        assert not undo([folder], "lora-clean").failures
        assert snapshot(folder) == state


def test_file_changed_meanwhile_is_left(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"by hand")
    failures = change(tmp_path, [Change("a.txt", b"as it was read", b"new"), Change("b.txt", None, b"b")])
    assert "another program" in failures["a.txt"]
    assert snapshot(tmp_path) == {"a.txt": b"by hand", "b.txt": b"b"}
    assert not list((tmp_path / HIDDEN).glob("*.tmp"))


def test_undo_leaves_what_was_changed_since(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"old")
    change(tmp_path, [Change("a.txt", b"old", b"new"), Change("b.txt", b"old", b"new")])
    (tmp_path / "a.txt").write_bytes(b"by hand")
    done = undo([tmp_path], "lora-clean")
    assert [path.name for path in done.restored] == ["b.txt"]
    assert len(done.failures) == 1
    assert "a.txt: changed since" in done.failures[0]
    assert snapshot(tmp_path) == {"a.txt": b"by hand", "b.txt": b"old"}
    assert [path.read_bytes() for path in (tmp_path / HIDDEN).glob("*.old/a.txt")] == [b"old"]
    assert list((tmp_path / HIDDEN).glob("*.kept"))


def test_the_rest_of_a_run_is_taken_back_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"old")
    change(tmp_path, [Change("a.txt", b"old", b"new")])
    change(tmp_path, [Change("a.txt", b"new", b"newer")], tool="lora-tag")
    told: list[str] = []
    (failure,) = undo([tmp_path], "lora-clean", tell=told.append).failures
    assert failure.endswith("a.txt: changed since, left alone")
    last = told[-1]
    assert "lora-tag --undo --run 2" in last
    run = last.rpartition("lora-clean --undo --run ")[2].split()[0]
    with pytest.raises(InputError, match=rf"no run .* but {run} was taken back in part"):
        undo([tmp_path], "lora-clean")
    # As long as the later run stands, its name helps no more.
    assert undo([tmp_path], "lora-clean", run=run).failures
    assert not undo([tmp_path], "lora-tag").failures
    assert not undo([tmp_path], "lora-clean", run=run).failures
    assert snapshot(tmp_path) == {"a.txt": b"old"}
    assert not (tmp_path / HIDDEN).exists()


def test_runs_that_changed_nothing_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"old")
    change(tmp_path, [Change("a.txt", b"old", b"new")])
    for _ in range(2):
        with Journal("lora-clean").folder(tmp_path) as desk:
            desk.begin([Change("a.txt", b"new", b"newer")])  # and stopped there
    told: list[str] = []
    assert undo([tmp_path], "lora-clean", dry_run=True, tell=told.append).restored == [tmp_path / "a.txt"]
    assert len([line for line in told if line.endswith("had changed nothing")]) == 2
    assert undo([tmp_path], "lora-clean").restored == [tmp_path / "a.txt"]
    assert snapshot(tmp_path) == {"a.txt": b"old"}
    # One whose files somebody has made as they were is none of those.
    change(tmp_path, [Change("a.txt", b"old", b"new")])
    change(tmp_path, [Change("a.txt", b"new", b"newer")])
    (tmp_path / "a.txt").write_bytes(b"new")
    assert undo([tmp_path], "lora-clean").restored == []
    assert snapshot(tmp_path) == {"a.txt": b"new"}


def test_dry_run_of_undo_changes_nothing(tmp_path: Path) -> None:
    change(tmp_path, [Change("a.txt", None, b"new")])
    before = snapshot(tmp_path)
    assert undo([tmp_path], "lora-clean", dry_run=True).restored == [tmp_path / "a.txt"]
    assert snapshot(tmp_path) == before
    assert undo([tmp_path], "lora-clean").restored == [tmp_path / "a.txt"]


def test_removed_and_renamed_files_come_back(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    (tmp_path / "b.png").write_bytes(b"other")
    before = snapshot(tmp_path)
    with Journal("lora-check").folder(tmp_path) as desk:
        desk.remove("a.png")
        desk.rename("b.png", "a.png")
    assert snapshot(tmp_path) == {"a.png": b"other"}
    undo([tmp_path], "lora-check")
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "link"), reason="no hard links there")
def test_a_file_with_both_names_comes_back(tmp_path: Path) -> None:
    """A run that was killed between giving a file its new name and taking the old one from it."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    before = snapshot(tmp_path)
    with Journal("lora-check").folder(tmp_path) as desk:
        desk.remove("a")
        desk.rename("b", "c")
    (kept,) = (
        path for path in (tmp_path / HIDDEN).rglob("*") if path.is_file() and path.read_bytes() == b"a"
    )
    os.link(kept, tmp_path / "a")
    os.link(tmp_path / "c", tmp_path / "b")
    assert undo([tmp_path], "lora-check").failures == []
    assert snapshot(tmp_path) == before
    assert not (tmp_path / HIDDEN).exists()


def test_rename_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    with Journal("lora-check").folder(tmp_path) as desk, pytest.raises(Exception, match="cannot be moved"):
        desk.rename("a", "b")
    assert snapshot(tmp_path) == {"a": b"a", "b": b"b"}


def test_one_run_in_several_folders_is_undone_together(tmp_path: Path) -> None:
    journal = Journal("lora-clean")
    for name in ("10_a", "10_b"):
        (tmp_path / name).mkdir()
        with journal.folder(tmp_path / name) as desk:
            desk.write([Change("x.txt", None, b"1")])
    other = Journal("lora-check")
    with other.folder(tmp_path / "10_a") as desk:
        desk.write([Change("y.txt", None, b"2")])
    assert len(undo([tmp_path], "lora-clean").restored) == 2
    assert snapshot(tmp_path / "10_a") == {"y.txt": b"2"}


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_link_is_replaced_and_comes_back(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"source")
    (tmp_path / "a.txt").symlink_to("source")
    change(tmp_path, [Change("a.txt", b"source", b"new")])
    assert snapshot(tmp_path) == {"source": b"source", "a.txt": b"new"}
    undo([tmp_path], "lora-clean")
    assert (tmp_path / "a.txt").is_symlink()
    assert snapshot(tmp_path) == {"source": b"source", "a.txt": b"source"}


def test_torn_last_line_is_no_change(tmp_path: Path) -> None:
    change(tmp_path, [Change("a.txt", None, b"new")])
    journal = next((tmp_path / HIDDEN).glob("*.jsonl"))
    journal.write_bytes(journal.read_bytes() + b'{"name": "b.t')
    assert undo([tmp_path], "lora-clean").restored == [tmp_path / "a.txt"]


def test_names_outside_the_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    change(folder, [Change("a.txt", None, b"new")])
    journal = next((folder / HIDDEN).glob("*.jsonl"))
    journal.write_text('{"name": "../evil", "before": "x", "after": "y"}\n')
    assert undo([folder], "lora-clean").failures
    assert not (tmp_path / "evil").exists()


def test_the_lock_is_waited_for(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(tmp_path):
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


COUNT_UP = """
import sys
from pathlib import Path
from lorapipe_engine.changes.filebytes import read_bytes
from lorapipe_engine.changes.journal import Change, Journal
folder = Path(sys.argv[1])
journal = Journal("count")
for _ in range(60):
    with journal.folder(folder) as desk:
        old = read_bytes(folder / "n")
        assert not desk.write([Change("n", old, str(int(old) + 1).encode())])
"""


@pytest.mark.slow
def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "n").write_bytes(b"0")
    runs = [subprocess.Popen([sys.executable, "-c", COUNT_UP, str(tmp_path)]) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    assert (tmp_path / "n").read_bytes() == b"120"
