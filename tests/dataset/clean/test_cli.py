"""The command on folders, files and records."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Clean = Callable[..., Any]
PROGRAM = [sys.executable, "-c", "from lorapipe_dataset.clean.cli import main; main()"]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_dry_run_shows_a_diff_and_changes_nothing(clean: Clean, imgs: Path) -> None:
    before = snapshot(imgs)
    result = clean(imgs, "--trigger", "mayuri", "--spaces", "--dry-run")
    assert result.code == 0
    assert "- 1girl, solo, white_shirt, shirt,, Solo , ^_^" in result.out
    assert "+ mayuri, 1girl, solo, white shirt, shirt, ^_^" in result.out
    assert "3 of 3 captions would change" in result.err
    assert snapshot(imgs) == before


def test_clean_again_and_undo(clean: Clean, imgs: Path) -> None:
    before = snapshot(imgs)
    options = ("--trigger", "mayuri", "--spaces", "--overlap", "--several-people")
    result = clean(imgs, *options)
    assert result.code == 0
    assert (imgs / "a.txt").read_bytes() == b"mayuri, 1girl, solo, white shirt, ^_^\n"
    assert (imgs / "b.txt").read_bytes() == b"mayuri, 2girls, smile\n"
    # No line end was there, so there is none.
    assert (imgs / "c.txt").read_bytes() == "mayuri, café, naïve".encode()
    assert f"lora-clean --undo {imgs}" in result.err
    after = snapshot(imgs)
    again = clean(imgs, *options)
    assert "0 of 3 captions changed" in again.err
    assert snapshot(imgs) == after
    assert "3 files are as before" in clean("--undo", imgs).err
    assert snapshot(imgs) == before


def test_clean_files_stay_byte_for_byte(clean: Clean, tmp_path: Path) -> None:
    for name, data in {"a": b"x, y", "b": b"x, y\n", "c": b""}.items():
        (tmp_path / f"{name}.txt").write_bytes(data)
    before = snapshot(tmp_path)
    assert clean(tmp_path).code == 0
    assert snapshot(tmp_path) == before


def test_undecodable_bytes_are_refused_by_name_and_others_done(clean: Clean, imgs: Path) -> None:
    (imgs / "bad.png").write_bytes(b"png")
    (imgs / "bad.txt").write_bytes(b"caf\xe9, x")
    result = clean(imgs, "--trigger", "t")
    assert result.code == 1
    assert "bad.txt: not UTF-8 (byte 3); lora-clean --encoding NAME" in result.err
    assert (imgs / "bad.txt").read_bytes() == b"caf\xe9, x"
    assert (imgs / "a.txt").read_bytes().startswith(b"t, ")


def test_other_texts_in_a_folder_of_pictures_are_left(clean: Clean, imgs: Path) -> None:
    (imgs / "readme.txt").write_text("Hello,world")
    result = clean(imgs, "--trigger", "t")
    assert (imgs / "readme.txt").read_text() == "Hello,world"
    assert "1 text files without a picture" in result.err


def test_records_in_records_out_and_files_along(clean: Clean, imgs: Path) -> None:
    lines = [
        {
            "path": str(imgs / "a.png"),
            "caption": "1girl, solo, white_shirt, shirt,, Solo , ^_^",
            "size": [8, 8],
        },
        {"path": str(imgs / "b.png"), "caption": "of another tagger"},
        {"path": str(imgs / "new.png"), "caption": "fresh"},
        {"path": str(imgs / "broken.png"), "error": "truncated"},
    ]
    b = (imgs / "b.txt").read_bytes()
    result = clean("--trigger", "t", stdin="\n".join(map(json.dumps, lines)))
    assert result.code == 1
    assert [record.get("caption") for record in result.records] == [
        "t, 1girl, solo, white_shirt, shirt, ^_^",
        "t, of another tagger",
        "t, fresh",
        None,
    ]
    assert result.records[0]["size"] == [8, 8]
    assert (imgs / "a.txt").read_bytes() == b"t, 1girl, solo, white_shirt, shirt, ^_^\n"
    assert (imgs / "new.txt").read_bytes() == b"t, fresh\n"
    assert (imgs / "b.txt").read_bytes() == b
    assert "1 caption files say something else than their records" in result.err


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("append", "2girls, blue hair, red hair, smile, hat"),
        ("merge", "2girls, blue hair, red hair, smile, hat"),
        ("prepend", "hat, 2girls, blue hair, red hair, smile"),
        ("replace", "smile, hat"),
    ],
)
def test_existing(clean: Clean, imgs: Path, mode: str, expected: str) -> None:
    line = json.dumps({"path": str(imgs / "b.png"), "caption": "smile, hat"})
    for _ in range(2):
        assert clean("--existing", mode, stdin=line).records[0]["caption"] == expected
        assert (imgs / "b.txt").read_text() == f"{expected}\n"


def test_no_txt_changes_records_only(clean: Clean, imgs: Path) -> None:
    before = snapshot(imgs)
    result = clean("--no-txt", "--trigger", "t", stdin=f"{imgs / 'a.png'}\n")
    assert result.records[0]["caption"].startswith("t, 1girl")
    assert snapshot(imgs) == before


def test_records_of_a_folder_go_on(clean: Clean, imgs: Path) -> None:
    found = clean(imgs, "--jsonl").records
    assert [record["path"] for record in found] == [str(imgs / f"{name}.png") for name in "abc"]


def test_if_empty_makes_missing_captions(clean: Clean, imgs: Path) -> None:
    (imgs / "d.png").write_bytes(b"png")
    (imgs / "a.txt").write_text("\n")
    clean(imgs, "--if-empty", "photo", "--trigger", "t")
    assert (imgs / "d.txt").read_text() == "t, photo\n"
    assert (imgs / "a.txt").read_text() == "t, photo\n"


def test_check_trigger(clean: Clean, imgs: Path) -> None:
    (imgs / "a.txt").write_text("Shiina_Mayuri, 1girl")
    result = clean(imgs, "--check-trigger", "shiina mayuri")
    assert result.code == 1
    assert [Path(line).name for line in result.out.splitlines()] == ["b.txt", "c.txt"]
    clean(imgs, "--trigger", "shiina mayuri")
    assert clean(imgs, "--check-trigger", "shiina mayuri").code == 0


def test_set_algebra(clean: Clean, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, text in ((one, "a, b_b, c"), (two, "B b, d")):
        folder.mkdir()
        (folder / "x.txt").write_text(text)
    (one / "alone.txt").write_text("z")
    expected = {"--union": "a, b_b, c, d", "--intersect": "b_b", "--subtract": "a, c"}
    for option, text in expected.items():
        for _ in range(2):
            clean(one, option, two)
            assert (one / "x.txt").read_text() == text
        assert (one / "alone.txt").read_text() == "z"
        clean("--undo", one)
    assert (two / "x.txt").read_text() == "B b, d"


def test_odd_names(clean: Clean, tmp_path: Path) -> None:
    names = ["-dash", "with space", "new\nline", "emoji😀", "{brace"]
    for name in names:
        (tmp_path / f"{name}.txt").write_text("a,a")
    assert clean(tmp_path).code == 0
    assert {path.read_text() for path in tmp_path.glob("*.txt")} == {"a"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--replace", "a=b", "--replace", "b=a"], "--replace: goes round in a circle: a -> b -> a"),
        (["--replace", "nothing"], "neither 'old=new' nor a file"),
        (["--regex", "(", "x"], "not a regular expression"),
        (["--regex", "a", r"\9"], "cannot stand in its place"),
        (["--drop-category", "colour"], "no category"),
        (["--join", "ab"], "one sign between tags"),
        (["--order", "frequency", "--max-tags", "3"], "a run of its own"),
        (["--strip-invariant", "3"], "a share"),
        (["--trigger", "a\nb"], "one line"),
        (["--trigger", "mayuri |||"], "'mayuri |||': ||| is training's mark (keep_tokens_separator)"),
        (["--trigger", "x|||y"], "lora-train --keep_tokens 1 keeps the first tag"),
        (["--add", "x |||"], "--add 'x |||': ||| is training's mark"),
        (["--trigger", "x ##", "--keep-tokens-separator", "##"], "## is training's mark"),
        (["--to", "txt", "-o", "caps", "--force"], "--to txt has --existing replace"),
        (["--tokenizer", "/nowhere", "--max-tokens", "75"], "no tokenizer there"),
        (["--to", "kohya"], "-o FILE is needed"),
        (["--trigge", "x"], "did you mean --trigger?"),
    ],
)
def test_wrong_options_are_told_in_one_line(
    clean: Clean, imgs: Path, options: list[str], message: str
) -> None:
    before = snapshot(imgs)
    result = clean(imgs, *options)
    assert result.code == 2
    assert message in result.err
    assert result.err.count("\n") == 1
    assert snapshot(imgs) == before


def test_wrong_inputs(clean: Clean, tmp_path: Path) -> None:
    assert "no such file or folder" in clean(tmp_path / "nowhere").err
    empty = clean(tmp_path)
    assert empty.code == 2
    assert "has no captions" in empty.err
    assert "no run of lora-clean to undo" in clean("--undo", tmp_path).err


def test_options_that_never_settle_are_an_error_of_the_caption(clean: Clean, imgs: Path) -> None:
    before = (imgs / "a.txt").read_bytes()
    result = clean(imgs, "--regex", "^solo", "soloo", "--drop", "blue hair")
    assert result.code == 1
    assert "a.txt: the options change this caption again and again" in result.err
    assert (imgs / "a.txt").read_bytes() == before
    assert b"blue hair" not in (imgs / "b.txt").read_bytes()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs folders that cannot be written")
def test_read_only_folder(clean: Clean, imgs: Path) -> None:
    imgs.chmod(0o555)
    try:
        result = clean(imgs, "--trigger", "t")
    finally:
        imgs.chmod(0o755)
    assert result.code == 1
    assert "cannot be changed (Permission denied)" in result.err


def test_what_stops_a_folder_is_told_once(clean: Clean, imgs: Path) -> None:
    # The test may run as root, whom permissions do not stop; a file in the journal's place does.
    (imgs / ".lorapipe").touch()
    before = snapshot(imgs)
    result = clean(imgs, "--trigger", "t", "--text")
    assert result.code == 1
    assert [line.split(" (")[0] for line in result.err.splitlines()] == [
        f"lora-clean: error: {imgs}: its files cannot be changed",
        "lora-clean: 0 of 3 captions changed, 3 failed",
    ]
    assert snapshot(imgs) == before


def test_a_mark_behind_the_first_tag_is_a_prefix(clean: Clean, imgs: Path) -> None:
    for _ in range(2):
        assert clean(imgs, "--prefix", "mayuri ||| ", "--text").code == 0
        assert (imgs / "c.txt").read_text(encoding="utf-8") == "mayuri ||| café, naïve"


def test_captions_in_another_folder_are_replaced_on_request(clean: Clean, imgs: Path, tmp_path: Path) -> None:
    old, words = tmp_path / "caps" / "b.txt", (imgs, "--to", "txt", "-o", tmp_path / "caps", "--text")
    assert clean(*words).code == 0
    old.write_text("old\n")
    assert "left alone (see --existing)" in clean(*words).err
    assert clean(*words, "--force").code == 2
    assert old.read_text() == "old\n"
    assert clean(*words, "--existing", "replace").code == 0
    assert old.read_text() == "2girls, blue hair, red hair, smile\n"
    file = tmp_path / "t.csv"
    file.write_text("old")
    assert clean(imgs, "--to", "csv", "-o", file, "--force", "--text").code == 0
    assert file.read_text().startswith("file_name,text\n")


def test_the_mark_of_the_trainer_is_known_by_any_name(clean: Clean, tmp_path: Path) -> None:
    words = (tmp_path, "--keep-tokens-separator", "##", "--order", "alphabet", "--trigger", "mira", "--text")
    for name, text in {"a": "1boy##standing, red, Red", "b": "x ||| b", "c": "z ## c, b;;;a ## k"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    result = clean(*words)
    assert result.code == 1
    assert (tmp_path / "a.txt").read_text() == "mira, 1boy ## red, standing"
    assert (tmp_path / "b.txt").read_text() == "x ||| b"
    assert "b.txt: holds ||| beside the mark ##" in result.err
    assert (tmp_path / "c.txt").read_text() == "mira, z ## c, b;;;a ## k"
    assert "2 of 3 captions have 'mira'" in clean(*words[:3], "--check-trigger", "mira").err
    assert "signs such as '|||'" in clean(tmp_path, "--keep-tokens-separator", "a, b").err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no such signal there")
@pytest.mark.parametrize("seed", range(int(os.environ.get("LORAPIPE_KILLS", "3"))))
def test_kill_leaves_each_caption_old_or_new(tmp_path: Path, seed: int) -> None:
    """Killed at random moments after the first caption is changed, with and without the second process; then taken
    back."""
    count = 6000 if seed % 2 else 2000
    for number in range(count):
        (tmp_path / f"{number}.txt").write_text(f"old, {number}\n")
    before = snapshot(tmp_path)
    words = [*PROGRAM, "-q", str(tmp_path), "--trigger", "new", "--text"]
    process = subprocess.Popen(words)
    first = min(tmp_path.glob("*.txt"), key=lambda path: path.name)
    while first.read_bytes().startswith(b"old"):
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(random.Random(seed).uniform(0, 0.3))
    process.send_signal(signal.SIGKILL)
    process.wait()
    texts = {number: (tmp_path / f"{number}.txt").read_text() for number in range(count)}
    new = sum(text == f"new, old, {number}\n" for number, text in texts.items())
    old = sum(text == f"old, {number}\n" for number, text in texts.items())
    assert new + old == count
    print(f"seed {seed}: {new} of {count} captions changed")
    subprocess.run([*PROGRAM, "-q", "--undo", str(tmp_path)], check=True)
    assert snapshot(tmp_path) == before
    # It can go on, too.
    subprocess.run(words, check=True)
    assert (tmp_path / "1.txt").read_text() == "new, old, 1\n"


@pytest.mark.slow
def test_a_folder_that_cannot_be_changed_leaves_the_others_right(tmp_path: Path) -> None:
    """With the second process at work: what it was asked for of the one folder is not taken for the next one's."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(6000):
            (tmp_path / name / f"{number}.txt").write_text(f"{name}, {number}\n")
    (tmp_path / "a" / ".lorapipe").touch()  # where the journal would be
    words = [*PROGRAM, "-r", "--jsonl", str(tmp_path), "--trigger", "new", "--text"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "6,000 of 12,000 captions changed, 6,000 failed" in done.stderr
    assert (tmp_path / "a" / "5.txt").read_text() == "a, 5\n"
    for number in range(6000):
        assert (tmp_path / "b" / f"{number}.txt").read_text() == f"new, b, {number}\n"
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(record["caption"].startswith("new, b, ") for record in records if "error" not in record)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no list of processes there")
def test_the_second_process_does_not_outlive_a_kill(tmp_path: Path) -> None:
    for number in range(6000):
        (tmp_path / f"{number}.txt").write_text(f"old, {number}\n")
    process = subprocess.Popen([*PROGRAM, "-q", str(tmp_path), "--trigger", "new", "--text"])
    while len(relatives(tmp_path, process.pid)) < 1:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    end = time.monotonic() + 20
    while (alive := relatives(tmp_path, process.pid)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive


def relatives(folder: Path, pid: int) -> list[str]:
    """Processes that work on a folder, or came of one that does, but for ``pid`` itself."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words, parent = (place / "cmdline").read_bytes(), (place / "stat").read_text().rsplit(")", 1)[1]
        except OSError:  # it has just ended
            continue
        state, above = parent.split()[:2]
        mine = os.fsencode(folder) in words or (int(above) == pid and b"multiprocessing" in words)
        if mine and int(place.name) != pid and state != "Z":
            found.append(place.name)
    return found


@pytest.mark.slow
def test_two_runs_at_once_lose_nothing(tmp_path: Path) -> None:
    count = 600
    for number in range(count):
        (tmp_path / f"{number}.txt").write_text(f"old, {number}\n")
    runs = [
        subprocess.Popen([*PROGRAM, "-q", str(tmp_path), "--text", "--add", tag]) for tag in ("one", "two")
    ]
    assert [run.wait() for run in runs] == [0, 0]
    for number in range(count):
        tags = (tmp_path / f"{number}.txt").read_text().strip().split(", ")
        assert sorted(tags) == sorted(["old", str(number), "one", "two"])


@pytest.mark.slow
def test_pipe_of_two_on_one_folder_goes_through(imgs: Path) -> None:
    one = subprocess.Popen([*PROGRAM, "-q", str(imgs), "--add", "one"], stdout=subprocess.PIPE)
    two = subprocess.run([*PROGRAM, "-q", "--add", "two"], stdin=one.stdout, capture_output=True, check=True)
    assert one.wait() == 0
    assert len(two.stdout.splitlines()) == 3
    assert (imgs / "c.txt").read_text(encoding="utf-8") == "café, naïve, one, two"


def test_help_is_light() -> None:
    code = "import sys; from lorapipe_dataset.clean.cli import lora_clean; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"numpy", "PIL", "torch", "lorapipe_dataset.clean.run"} & set(loaded)


@pytest.mark.slow
def test_a_second_process_makes_no_difference(
    clean: Clean, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--trigger", "t", "--spaces", "--overlap", "--max-tags", "3")
    results = {}
    for name, worth_it in (("one", 10_000), ("two", 1)):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(1500):
            (folder / f"{number}.txt").write_text(f"a_{number % 7}, red_hat, hat, b{number}, " + "x, " * 3)
        (folder / "7.txt").write_bytes(b"\xffbroken")
        monkeypatch.setattr("lorapipe_dataset.clean.files.helper.WORTH_IT", worth_it)
        done = clean(folder, *options, "--text")
        results[name] = (
            done.code,
            done.err.replace(str(folder), ""),
            {path.name: path.read_bytes() for path in folder.glob("*.txt")},
        )
    assert results["one"] == results["two"]
    assert results["one"][0] == 1
    assert "7.txt: not UTF-8 (byte 0)" in results["one"][1]
