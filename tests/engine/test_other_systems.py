"""What Windows and macOS do otherwise, where Linux can stand in: code pages, refused renames, folders that cannot be
held open, names that differ in case alone, paths with drives, workers that are started anew."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest

from lorapipe_engine.errors import OutputError
from lorapipe_engine.files.writing import openfolder
from lorapipe_engine.files.writing.atomic import atomic_write, open_growing

# A Russian console, and a western one.
PAGES = ("cp1251", "cp850")


def started(code: str, *words: str, folder: Path, page: str) -> subprocess.CompletedProcess[bytes]:
    """A command in a process whose streams have a code page, as on Windows."""
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": page, "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and captions with letters that no code page of Europe has."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("dataset")
    (root / "日本" / "2_猫").mkdir(parents=True)
    for number in range(3):
        image.new("RGB", (64, 64), (number * 40, 9, 9)).save(root / "日本" / "2_猫" / f"絵{number}.png")
        (root / "日本" / "2_猫" / f"絵{number}.txt").write_text("猫, тест, cat", encoding="utf-8")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_report_on_a_console_without_its_letters(dataset: Path, page: str) -> None:
    done = started("from lorapipe_dataset.check.cli import main; main()", "日本", folder=dataset, page=page)
    assert done.returncode == 0, done.stderr
    assert b"\\u732b" in done.stdout
    assert ("тест" in done.stdout.decode(page)) is False or page == "cp1251"


@pytest.mark.slow
def test_a_configuration_goes_into_a_file_as_utf_8_whatever_the_console_has(dataset: Path) -> None:
    code = "from lorapipe_engine.cli import train_main; train_main()"
    words = ("日本", "--suggest", "--kind", "character")
    done = started(code, *words, folder=dataset, page="cp1251")
    assert done.returncode == 0, done.stderr
    assert tomllib.loads(done.stdout.decode("utf-8"))["data"]["train_data_dir"] == "日本"
    (dataset / "run.toml").write_bytes(done.stdout)
    done = started(code, "run.toml", "--print_config", folder=dataset, page="cp1251")
    assert tomllib.loads(done.stdout.decode("utf-8"))["data"]["train_data_dir"] == "日本"


# -------------------------------------------------------------------------------- files


def refusing(monkeypatch: pytest.MonkeyPatch, times: int) -> list[int]:
    """Let the system refuse so many renames, as Windows does while another program has the file open."""
    tries: list[int] = []
    real = os.replace

    def replace(*args: Any, **options: Any) -> None:
        tries.append(1)
        if len(tries) <= times:
            raise PermissionError(13, "Access is denied")
        real(*args, **options)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(openfolder, "PAUSES", (0.0, 0.0))
    return tries


def test_a_rename_that_is_refused_for_a_moment_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("old")
    tries = refusing(monkeypatch, 2)
    with atomic_write(tmp_path / "a", force=True) as file:
        file.write(b"new")
    assert ((tmp_path / "a").read_text(), len(tries)) == ("new", 3)


def test_a_rename_that_stays_refused_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("old")
    refusing(monkeypatch, 99)
    message = "a: cannot be replaced: Access is denied"
    with pytest.raises(OutputError, match=message), atomic_write(tmp_path / "a", force=True) as file:
        file.write(b"new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_files_are_written_where_folders_cannot_be_held_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openfolder, "_RELATIVE", False)
    for force in (False, True):
        with atomic_write(tmp_path / "run" / "a", force=force, inside=tmp_path) as file:
            file.write(b"%d" % force)
    with pytest.raises(OutputError, match="exists already"), atomic_write(tmp_path / "run" / "a"):
        pass
    with open_growing(tmp_path / "log", b"1\n", force=False) as file:
        file.write(b"2\n")
    assert (tmp_path / "log").read_bytes() == b"1\n2\n"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "log", "run"]


def test_results_that_differ_in_case_alone_are_refused(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lorapipe_engine.cli import lora_train

    for name in ("Mayu", "mayu"):
        (tmp_path / f"{name}-run.toml").write_text(
            f'output_name = "{name}"\noutput_dir = "{tmp_path.as_posix()}"'
        )
    with pytest.raises(SystemExit) as ended:
        lora_train.main([str(path) for path in sorted(tmp_path.glob("*.toml"))])
    assert ended.value.code == 2
    assert "both write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (r'train_data_dir = "D:\data\mayu"', "write / for each \\"),
        (r'train_data_dir = "D:\test\new"', "was read with a \\ as an escape"),
    ],
)
def test_a_backslash_in_a_configuration_is_told(
    line: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lorapipe_engine.cli import lora_train

    (tmp_path / "run.toml").write_text(line)
    with pytest.raises(SystemExit) as ended:
        lora_train.main([str(tmp_path / "run.toml"), "--print_config"])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


# -------------------------------------------------------------------------------- workers


@pytest.mark.slow
def test_a_worker_that_is_started_anew_cleans_as_a_copy_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows and macOS start a second Python; so does Linux while another thread runs."""
    from lorapipe_dataset.clean.cli import lora_clean

    monkeypatch.setattr("lorapipe_dataset.clean.files.helper.WORTH_IT", 1)
    results = []
    for name in ("copy", "anew"):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(300):
            (folder / f"{number}.txt").write_text(f"a_{number % 7}, red_hat, hat, b{number}")
        ended = threading.Event()
        other = threading.Thread(target=ended.wait)
        if name == "anew":
            other.start()
        try:
            with pytest.raises(SystemExit) as stopped:
                lora_clean.main([str(folder), "--overlap", "--trigger", "t", "--text"])
        finally:
            ended.set()
        assert stopped.value.code == 0
        results.append({path.name: path.read_bytes() for path in folder.glob("*.txt")})
    assert results[0] == results[1]
    assert results[0]["0.txt"].startswith(b"t, ")
