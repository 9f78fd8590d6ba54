"""How the editor begins and ends: signals, kills in the middle of writing, wrong use, and how quick it is."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("waitress")
pytest.importorskip("werkzeug")

from support.editor import Editor, editing, held

MANY = 500
SEED = random.SystemRandom().randrange(1 << 30)


def make(folder: Path, count: int, suffix: str = ".txt") -> Path:
    """A dataset of so many copies of one picture, with captions of their own."""
    place = folder / "5_cat"
    place.mkdir(parents=True)
    Image.new("RGB", (64, 48), "teal").save(place / "0000.png")
    for number in range(count):
        if number:
            shutil.copy(place / "0000.png", place / f"{number:04}.png")
        (place / f"{number:04}{suffix}").write_bytes(f"cat {number}, solo, hat\r\n".encode())
    return place


@pytest.fixture
def large(tmp_path: Path) -> Path:
    return make(tmp_path / "set", MANY)


def rename(editor: Editor, versions: dict[int, Any]) -> dict[str, Any]:
    body = {"action": "rename", "from": "solo", "to": "alone", "ids": list(versions), "versions": versions}
    return editor.post("api/edit", **body).json


def versions_of(editor: Editor) -> dict[int, Any]:
    return {one["id"]: one["version"] for one in editor.state()["pictures"]}


# -------------------------------------------------------------------------------- its end


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without a signal")
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_it(large: Path, number: int, code: int, word: str) -> None:
    """Also while it writes: that edit is whole, and the next server can take it back."""
    before = held(large)
    with editing(large.parent) as editor:
        versions = versions_of(editor)
        sender = threading.Thread(target=_ignoring_the_end, args=(editor, versions), daemon=True)
        sender.start()
        until = time.monotonic() + 10
        while not (large / ".lorapipe").exists() and time.monotonic() < until:
            time.sleep(0.0005)
        ended, err = editor.end(number)
        sender.join(10)
    assert (ended, err.splitlines()[-1]) == (code, f"lora-check: {word}")
    assert "Traceback" not in err
    after = held(large)
    assert all(data.endswith(b", alone, hat\n") for name, data in after.items() if name.endswith(".txt"))
    assert after.keys() == before.keys()


def _ignoring_the_end(editor: Editor, versions: dict[int, Any]) -> None:
    with suppress(OSError, HTTPException, ValueError):  # it may end before it has answered
        rename(editor, versions)


# -------------------------------------------------------------------------------- kills


def _moments(count: int) -> Iterator[tuple[str, int]]:
    """Moments of a rename: so many new files lie ready, or the file of that number has just changed."""
    draw = random.Random(SEED)
    for number in range(count):
        yield ("staged" if number % 3 == 0 else "changed"), draw.randrange(MANY)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the moments are found by what Linux does")
def test_killed_in_the_middle_of_a_rename(large: Path, check: Any) -> None:
    """At 20 random moments: each caption is old or new, and --undo brings every byte back."""
    before = held(large)
    captions = {name: data for name, data in before.items() if name.endswith(".txt")}
    news = {name: data.replace(b"solo", b"alone").replace(b"\r", b"") for name, data in captions.items()}
    mixed = 0
    for kind, number in _moments(20):
        with editing(large.parent) as editor:
            versions = versions_of(editor)
            sender = threading.Thread(target=_ignoring_the_end, args=(editor, versions), daemon=True)
            sender.start()
            _wait_for(large, kind, number)
            editor.process.kill()
            editor.process.wait()
            sender.join(10)
        after = held(large)
        told = f"seed {SEED}, {kind} {number}"
        assert after.keys() == before.keys(), told
        for name, old in captions.items():
            assert after[name] in (old, news[name]), f"{told}: {name}"
        count = sum(after[name] == news[name] for name in captions)
        mixed += 0 < count < MANY
        done = check(large.parent, "--undo")
        assert done.code == 0, f"{told}: {done.err}"
        assert held(large) == before, told
    # Kills came in the middle of it, not before and after.
    assert mixed >= 5, f"seed {SEED}"


def _wait_for(place: Path, kind: str, number: int) -> None:
    until = time.monotonic() + 20
    caption = place / f"{number:04}.txt"
    first = caption.stat().st_ino
    while time.monotonic() < until:
        if kind == "changed":
            if caption.stat().st_ino != first:
                return
        elif any((folder / f"{number:04}.txt").exists() for folder in place.glob(".lorapipe/*.old")):
            return
    raise AssertionError(f"{kind} {number}: never came")


# -------------------------------------------------------------------------------- wrong use


def test_wrong_use_is_one_clear_line(tmp_path: Path, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make(tmp_path / "set", 2)
    (tmp_path / "empty").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        rows = {
            ("--edit",): "--edit: name one folder",
            ("--edit", place, tmp_path): "--edit: name one folder",
            ("--edit", tmp_path / "missing"): "no such folder",
            ("--edit", place / "0000.png"): "is a file, not a folder",
            ("--edit", tmp_path / "empty"): "no pictures found",
            ("--edit", place, "--port", port): f"--port {port}: another program has it",
            ("--edit", place, "--port", 70000): "--port",
            ("--edit", place, "--fix", "orphan-caption"): "--fix and --edit exclude each other",
            ("--edit", place, "--html", "r.html"): "--html has no use with --edit",
            ("--edit", place, "--ignore", "nothing"): "no rule 'nothing'",
            ("--edit", place, "--hints", tmp_path / "no.jsonl"): "no.jsonl: cannot be read",
            ("--edit", place, "--tags", place / "0000.txt"): "not a tag list",
            (place, "--port", 80): "--port has no use with the report; it belongs to --edit",
            (place, "--no-browser"): "--browser",
        }
        for words, said in rows.items():
            done = check(*words)
            assert (done.code, done.out) == (2, ""), words
            assert said in done.err, (words, done.err)
            assert len(done.err.splitlines()) == 1
    monkeypatch.setitem(sys.modules, "waitress", None)
    done = check("--edit", place)
    assert (done.code, done.err) == (2, "lora-check: error: --edit needs waitress: pip install waitress\n")


@pytest.mark.slow
def test_hints_and_words_are_offered(tmp_path: Path) -> None:
    place = make(tmp_path / "set", 2)
    words = tmp_path / "tags.csv"
    words.write_text(
        "tag_id,name,category,count\n1,hat,0,50\n2,long_hair,0,900\n3,mina_(world),4,70\n9,safe,9,1\n"
    )
    hints = tmp_path / "hints.jsonl"
    rows: list[dict[str, Any]] = [
        {"general": {"hat": 0.7, "long_hair": 0.9}, "character": {"mina": 0.8}},
        {"general": {"hat": 0.9}},
    ]
    paths = place / "0000.png", tmp_path / "other.png"
    records = [{"path": str(path), **row} for path, row in zip(paths, rows, strict=True)]
    hints.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    with editing(place.parent, "--tags", words, "--hints", hints) as editor:
        pictures = editor.pictures()
        assert pictures["0000.png"]["hints"] == ["long hair", "mina"]  # it has a hat
        assert "hints" not in pictures["0001.png"]
        page = editor.get().body.decode()
        assert (
            '"words":[["long hair",900,"general"],["mina (world)",70,"character"],["hat",50,"general"]]'
            in page
        )
        answer = editor.edit("add", "0000.png", tags=["long hair"])
        assert answer["changed"][0]["hints"] == ["mina"]
        assert any(rule["id"] == "unknown-tag" for rule in answer["rules"])
        _, err = editor.end()
    assert "hints for 1 of 2 pictures" in err


# -------------------------------------------------------------------------------- what it prints


@pytest.mark.slow
def test_the_address_is_all_of_stdout(tmp_path: Path) -> None:
    place = make(tmp_path / "set", 1)
    words = [
        sys.executable,
        "-c",
        "from lorapipe_dataset.check.cli import main; main()",
        "--edit",
        str(place),
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [*words, "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.terminate()
        out, err = process.communicate(timeout=20)
    assert line.startswith("http://127.0.0.1:")
    assert line.endswith("/\n")
    assert (out, err) == ("", "lora-check: terminated\n" if os.name != "nt" else err)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no terminals of this kind there")
def test_a_browser_gets_an_address_that_is_good_once(tmp_path: Path) -> None:
    """Who lists the machine's processes sees it; the address with the secret stands in the terminal alone."""
    import pty

    place, seen = make(tmp_path / "set", 1), tmp_path / "seen"
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\necho "$1" > {seen}.new\nmv {seen}.new {seen}\n')
    program.chmod(0o755)
    code = "from lorapipe_dataset.check.cli import main; main()"
    path = os.pathsep.join(sys.path)
    env = {**os.environ, "PYTHONPATH": path, "BROWSER": str(program), "DISPLAY": ":0"}
    main, side = pty.openpty()
    command = [sys.executable, "-c", code, "--edit", str(place)]
    with subprocess.Popen(command, stdout=side, stderr=subprocess.PIPE, env=env) as process:
        os.close(side)
        try:
            until = time.monotonic() + 20
            while not seen.exists() and time.monotonic() < until:
                time.sleep(0.02)
            shown = os.read(main, 1000).decode().strip()
            opened = seen.read_text().strip()
            host, ticket = opened.removeprefix("http://").split("/", 1)
            assert ticket not in shown
            answers = []
            for _ in range(2):
                connection = HTTPConnection(host, timeout=20)
                connection.request("GET", f"/{ticket}")
                answer = connection.getresponse()
                answers.append((answer.status, answer.getheader("Location")))
                connection.close()
            assert answers == [(303, "/" + shown.split("/", 3)[3]), (404, None)]
        finally:
            process.terminate()
            process.communicate(timeout=20)
            os.close(main)


@pytest.mark.slow
def test_no_other_mode_loads_the_server(tmp_path: Path) -> None:
    place = make(tmp_path / "set", 1)
    for words in (["--help"], [str(place)]):
        code = (
            "import sys\nfrom lorapipe_dataset.check.cli import lora_check\n"
            f"try: lora_check.main({words!r})\nexcept SystemExit: pass\n"
            "assert not {'waitress', 'werkzeug', 'http.server'} & set(sys.modules)\n"
            "assert not [name for name in sys.modules if 'check.edit' in name]"
        )
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False
        )
        assert done.returncode == 0, done.stderr


# -------------------------------------------------------------------------------- how quick it is


@pytest.mark.slow
def test_a_rename_on_500_captions_takes_less_than_two_seconds(large: Path) -> None:
    before = held(large)
    with editing(large.parent) as editor:
        times = []
        for _ in range(2):
            versions = versions_of(editor)
            began = time.monotonic()
            answer = rename(editor, versions)
            times.append(time.monotonic() - began)
            assert len(answer["changed"]) == MANY
            assert answer["undo"]["label"] == f"rename solo to alone on {MANY} captions"
            assert len(editor.undo()["changed"]) == MANY
            assert held(large) == before
        assert min(times) < 2.0, times


@pytest.mark.slow
def test_changes_of_2000_pictures_take_less_than_50_ms(tmp_path: Path) -> None:
    place = make(tmp_path / "set", 2000)
    with editing(place.parent) as editor:
        revision = editor.state()["revision"]
        time.sleep(3)  # until the files are old enough to be known by their times
        editor.get(f"api/changes?since={revision}")
        times = []
        for _ in range(20):
            began = time.monotonic()
            assert editor.get(f"api/changes?since={revision}").json["changed"] == []
            times.append(time.monotonic() - began)
    assert min(times) < 0.05, times
