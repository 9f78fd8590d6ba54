"""Journals that came with a dataset, damaged ones, and links in the places of journals and of what they keep."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from support.hostile import SECRET, Tool, World, digest, fingerprint, needs_links, plant

RUN = "20260102T030405.000000000-lora-clean-0a1b2c"
FUTURE = "29990102T030405.000000000-lora-clean-0a1b2c"


def only_hidden(world: World) -> Path:
    return world.data / ".lorapipe"


def own_run(tool: Tool, world: World) -> Path:
    """A run of the user's, and its journal."""
    assert tool("lora-clean", world.data, "--text").code == 0
    return next(only_hidden(world).glob("*.jsonl"))


# -------------------------------------------------------------------------------- RUN.old leads elsewhere


def stolen(world: World) -> None:
    """A journal that has a file of the user's moved into the dataset."""
    plant(
        world.data, {"name": "a.txt", "old": True, "after": fingerprint((world.data / "a.txt").read_bytes())}
    )


def deleted(world: World) -> None:
    """A journal that has a file of the user's deleted: a missing number of a file is equal to a missing one."""
    plant(world.data, {"name": "secret.txt", "old": True, "after": ""})


@needs_links
@pytest.mark.parametrize("how", [stolen, deleted])
@pytest.mark.parametrize("kind", ["symlink", "relative", "chain", "hard"])
def test_old_files_that_lie_elsewhere(tool: Tool, world: World, how: object, kind: str) -> None:
    how(world)  # type: ignore[operator]
    old = only_hidden(world) / f"{RUN}.old"
    if kind == "hard":
        old.mkdir()
        for name in ("a.txt", "secret.txt"):
            os.link(world.home / name, old / name)
    elif kind == "chain":
        (only_hidden(world) / "step").symlink_to(world.home)
        old.symlink_to("step")
    else:
        old.symlink_to(world.home if kind == "symlink" else "../../home")
    before, data = digest(world.home), digest(world.data)
    done = tool("lora-clean", "--undo", world.data)
    assert (done.code, len(done.errors)) == (2, 1)
    assert f"--undo --run {RUN}" in done.errors[0]
    assert (digest(world.home), digest(world.data)) == (before, data)
    # By name too it reaches nothing there.
    done = tool("lora-clean", "--undo", "--run", RUN, world.data)
    assert done.code == 1
    assert len(done.errors) == 1
    assert "link" in done.errors[0]
    assert digest(world.home) == before
    assert SECRET not in "".join(path.read_text() for path in world.data.glob("*.txt"))


@needs_links
@pytest.mark.parametrize("kind", ["symlink", "dangling", "file"])
def test_the_users_own_run_with_other_old_files(tool: Tool, world: World, kind: str) -> None:
    journal = own_run(tool, world)
    old = journal.with_suffix(".old")
    shutil.rmtree(old)
    old.symlink_to(
        world.home if kind == "symlink" else world.home / "none"
    ) if kind != "file" else old.touch()
    before, data = digest(world.home), digest(world.data)
    done = tool("lora-clean", "--undo", world.data)
    assert (done.code, len(done.errors)) == (1, 1)
    assert (digest(world.home), digest(world.data)) == (before, data)


@needs_links
@pytest.mark.parametrize("kind", ["symlink", "dangling", "folder"])
def test_an_old_file_that_is_a_link(tool: Tool, world: World, kind: str) -> None:
    journal = own_run(tool, world)
    old = journal.with_suffix(".old") / "a.txt"
    old.unlink()
    old.symlink_to(
        {"symlink": world.home / "a.txt", "dangling": world.home / "x", "folder": world.home}[kind]
    )
    before = digest(world.home)
    done = tool("lora-clean", "--undo", world.data)
    assert (done.code, len(done.errors)) == (1, 1)
    assert "a link, not a file" in done.errors[0]
    assert digest(world.home) == before
    assert not (world.data / "a.txt").is_symlink()
    assert (world.data / "b.txt").read_text() == "cat, cat, b\n"


@needs_links
def test_a_file_moved_away_that_is_a_link_now(tool: Tool, world: World) -> None:
    (world.data / "gone.txt").write_text("of no picture")
    assert tool("lora-check", world.data, "--no-look", "--fix", "orphan-caption").code == 0
    kept = next(only_hidden(world).glob("*.kept"))
    kept.unlink()
    kept.symlink_to(world.home / "secret.txt")
    before = digest(world.home)
    done = tool("lora-check", world.data, "--undo")
    assert (done.code, len(done.errors)) == (1, 1)
    assert not (world.data / "gone.txt").is_symlink()
    assert digest(world.home) == before


@needs_links
@pytest.mark.parametrize("kind", ["symlink", "hard", "dangling", "folder"])
def test_a_journal_that_is_a_link(tool: Tool, world: World, kind: str) -> None:
    journal = own_run(tool, world)
    copy = world.home / "journal"
    shutil.move(journal, copy)
    if kind == "hard":
        os.link(copy, journal)
    else:
        journal.symlink_to({"symlink": copy, "dangling": world.home / "x", "folder": world.home}[kind])
    before, data = digest(world.home), digest(world.data)
    for words in ([], ["--run", journal.stem]):
        done = tool("lora-clean", "--undo", world.data, *words)
        assert (done.code, len(done.errors)) == (1, 1)
        assert "link" in done.errors[0]
    assert (digest(world.home), digest(world.data)) == (before, data)


@needs_links
def test_a_link_is_put_back_only_by_the_users_own_run(tool: Tool, world: World) -> None:
    after = fingerprint((world.data / "a.txt").read_bytes())
    secret = str(world.home / "secret.txt")
    plant(world.data, {"name": "a.txt", "link": secret, "before": "x", "after": after})
    done = tool("lora-clean", "--undo", "--run", RUN, world.data)
    assert (done.code, len(done.errors)) == (1, 1)
    assert not (world.data / "a.txt").is_symlink()


# -------------------------------------------------------------------------------- whose run


def test_a_journal_of_the_future(tool: Tool, world: World) -> None:
    text = {path.name: path.read_bytes() for path in world.data.glob("*.txt")}
    own_run(tool, world)
    plant(world.data, {"name": "c.png", "renamed": "a.png"}, {"name": "b.png", "kept": "c.png"}, run=FUTURE)
    (world.data / "c.png").rename(only_hidden(world) / "c.png")
    done = tool("lora-clean", "--undo", world.data)
    assert done.code == 0
    assert "dated in the future, so it is refused" in done.err
    assert {path.name: path.read_bytes() for path in world.data.glob("*.txt")} == text
    done = tool("lora-clean", "--undo", world.data)
    assert (done.code, len(done.errors)) == (2, 1)
    done = tool("lora-clean", "--undo", world.data, "--run", FUTURE)
    assert (done.code, len(done.errors)) == (2, 1)
    assert "dated in the future" in done.errors[0]
    assert (only_hidden(world) / "c.png").exists()


def test_a_strangers_newer_run_does_not_come_before_the_users(tool: Tool, world: World) -> None:
    text = {path.name: path.read_bytes() for path in world.data.glob("*.txt")}
    journal = own_run(tool, world)
    newer = f"{journal.stem[:15]}.999999999-lora-clean-ffffff"
    plant(world.data, {"name": "gone.txt", "renamed": "a.txt"}, run=newer)
    done = tool("lora-clean", "--undo", world.data)
    assert done.code == 0
    assert newer in done.err
    assert "passed over" in done.err
    assert {path.name: path.read_bytes() for path in world.data.glob("*.txt")} == text


def test_run_folder_and_date_are_said_first(tool: Tool, world: World) -> None:
    journal = own_run(tool, world)
    done = tool("lora-clean", "--undo", world.data)
    first = done.err.splitlines()[0]
    day = journal.name
    assert journal.stem in first
    assert str(world.data) in first
    assert f"{day[:4]}-{day[4:6]}-{day[6:8]} {day[9:11]}:{day[11:13]}:{day[13:15]} UTC" in first


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_dataset_that_was_moved(tool: Tool, world: World, how: str) -> None:
    before = {path.name: path.read_bytes() for path in world.data.glob("*.txt")}
    journal = own_run(tool, world)
    place = world.data.with_name("elsewhere")
    shutil.move(world.data, place) if how == "moved" else shutil.copytree(world.data, place)
    now = digest(place)
    done = tool("lora-clean", "--undo", place)
    assert (done.code, len(done.errors)) == (2, 1)
    assert digest(place) == now
    words = f"lora-clean --undo --run {journal.stem} {place}"
    assert words in done.errors[0]
    assert tool(*words.split()).code == 0
    assert {path.name: path.read_bytes() for path in place.glob("*.txt")} == before
    assert not (place / ".lorapipe").exists()


def test_the_dry_run_shows_all_that_would_go(tool: Tool, world: World) -> None:
    (world.data / "gone.txt").write_text("of no picture")
    words = ["--trigger", "mayu", "--fix", "orphan-caption", "--fix", "no-trigger"]
    assert tool("lora-check", world.data, "--no-look", *words).code == 0
    now = digest(world.data)
    done = tool("lora-check", world.data, "--undo", "--dry-run")
    assert done.code == 0
    steps = done.out.splitlines()
    hidden = only_hidden(world)
    assert f"would move {next(hidden.glob('*.kept'))} -> {world.data / 'gone.txt'}" in steps
    for name in "abc":
        assert any(line.startswith(f"would restore {world.data / name}.txt") for line in steps)
    assert f"would delete {next(hidden.glob('*.jsonl'))}" in steps
    assert len(steps) == 5
    assert digest(world.data) == now


@pytest.mark.parametrize("size", ["same", "longer"])
def test_a_journal_that_another_wrote_over_the_users(tool: Tool, world: World, size: str) -> None:
    journal = own_run(tool, world)
    line = json.dumps({"name": "z.png", "renamed": "a.png"}) + "\n"
    held = journal.read_bytes()
    other = journal.with_name("other")
    other.write_bytes(
        line.encode().ljust(len(held) - 1, b" ") + b"\n" if size == "same" else held + line.encode()
    )
    other.replace(journal)
    now = digest(world.data)
    done = tool("lora-clean", "--undo", world.data)
    assert (done.code, len(done.errors)) == (1, 1)
    assert "not as it was written here" in done.errors[0]
    assert digest(world.data) == now


# -------------------------------------------------------------------------------- damage

LINES: dict[str, bytes] = {
    "a list": b"[]",
    "null": b"null",
    "a number": b"5",
    "a text": b'"x"',
    "an empty object": b"{}",
    "no JSON": b"{{{",
    "not UTF-8": b'{"name": "\xff\xfe", "before": "x", "after": "y"}',
    "a number of 5,000 digits": b'{"name": "a.txt", "old": true, "after": "x", "inode": '
    + b"9" * 5000
    + b"}",
    "nested deeply": b"[" * 100_000 + b"]" * 100_000,
    "a name that is a number": b'{"name": 5, "before": "x", "after": "y"}',
    "a name that is null": b'{"name": null, "kept": "x"}',
    "the folder above": b'{"name": "..", "renamed": "a.txt"}',
    "a way to another folder": b'{"name": "../home/secret.txt", "renamed": "a.txt"}',
    "a whole path": b'{"name": "/tmp/x", "renamed": "a.txt"}',
    "NUL in a name": b'{"name": "a\\u0000b", "old": true, "after": "y"}',
    "half a letter in a name": b'{"name": "\\ud800", "old": true, "after": "y"}',
    "kept elsewhere": b'{"name": "z.txt", "kept": "../../home/secret.txt"}',
    "kept as a list": b'{"name": "z.txt", "kept": []}',
    "kept under ..": b'{"name": "z.txt", "kept": ".."}',
    "moved elsewhere": b'{"name": "z.txt", "renamed": "../home/secret.txt"}',
    "no after": b'{"name": "a.txt", "before": "x"}',
    "no before": b'{"name": "a.txt", "after": "x"}',
    "an after that is a list": b'{"name": "a.txt", "before": "x", "after": []}',
    "a before that is a list": b'{"name": "a.txt", "before": [], "after": "x"}',
    "half a letter before": b'{"name": "a.txt", "before": "\\ud800", "after": "x"}',
    "base 64 that is none": b'{"name": "a.txt", "before_base64": "!", "after": "x"}',
    "base 64 that is a number": b'{"name": "a.txt", "before_base64": 5, "after": "x"}',
    "a link that is a number": b'{"name": "a.txt", "link": 5, "before": "x", "after": "x"}',
    "the hidden folder": b'{"name": ".lorapipe", "renamed": "a.txt"}',
}


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_damaged_journals_take_one_line(tool: Tool, world: World, line: bytes) -> None:
    plant(world.data, raw=line + b"\n")
    home = digest(world.home)
    files = {path.name: path.read_bytes() for path in world.data.glob("*.*") if path.is_file()}
    done = tool("lora-clean", "--undo", world.data)
    assert (done.code, len(done.errors)) == (2, 1)
    done = tool("lora-clean", "--undo", "--run", RUN, world.data)
    assert done.code in (1, 2)
    assert len(done.errors) == 1
    assert digest(world.home) == home
    assert {path.name: path.read_bytes() for path in world.data.glob("*.*") if path.is_file()} == files


@pytest.mark.parametrize("line", [b"[]", b"null", b'{"name": 5}', LINES["a number of 5,000 digits"]])
def test_the_users_own_journal_damaged(tool: Tool, world: World, line: bytes) -> None:
    journal = own_run(tool, world)
    journal.write_bytes(line + b"\n")
    now = digest(world.data)
    done = tool("lora-clean", "--undo", world.data)
    assert (done.code, len(done.errors)) == (1, 1)
    assert digest(world.data) == now


@pytest.mark.parametrize("inode", [None, "5", 5.0, True, [], -1, 0])
def test_only_a_whole_number_is_a_number_of_a_file(tool: Tool, world: World, inode: object) -> None:
    old = only_hidden(world) / f"{RUN}.old"
    old.mkdir(parents=True)
    (old / "z.txt").write_text("kept")
    plant(world.data, {"name": "z.txt", "old": True, "inode": inode, "after": "x"})
    done = tool("lora-clean", "--undo", "--run", RUN, world.data)
    assert (done.code, len(done.errors)) == (1, 1)
    assert (old / "z.txt").read_text() == "kept"


@pytest.mark.parametrize(
    "name", ["zzz-lora-clean-x", "20269999T030405.000000000-lora-clean-0a1b2c", "-lora-clean-"]
)
def test_names_that_are_no_runs(tool: Tool, world: World, name: str) -> None:
    plant(world.data, {"name": "z.png", "renamed": "a.png"}, run=name)
    done = tool("lora-clean", "--undo", world.data)
    assert (done.code, len(done.errors)) == (2, 1)
    assert "not a name that lora-clean gives a journal" in done.err
    assert tool("lora-clean", "--undo", "--run", name, world.data).code == 2
    assert (world.data / "a.png").exists()
