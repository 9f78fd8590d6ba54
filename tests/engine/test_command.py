"""What every command line tool shares, tried on a small command in a real process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TOY = """
import sys, click
from lorapipe_engine.command.tool import tool_command, say
from lorapipe_engine.errors import ConfigError, ProblemFound

@tool_command("toy", examples="toy --some-number 3")
@click.option("--some_number", type=int, default=1)
@click.option("--text", default="")
@click.argument("what", default="")
def toy(some_number, text, what):
    "Do a toy's work."
    if what == "config": raise ConfigError("bad config:\\n try \\x1b[31manother")
    if what == "problem": raise ProblemFound("one failed")
    if what == "bug": raise ValueError("deep inside")
    if what == "oserror": open("/no/such/file")
    if what == "interrupt": raise KeyboardInterrupt
    if what == "status": return 1
    if what == "exit": sys.exit(1)
    if what == "exit with text": sys.exit("no\\ngood")
    if what == "end of file": raise EOFError("ran out of input")
    if what == "memory": raise MemoryError("wanted 9 GiB")
    if what == "odd name": raise PermissionError(13, "Permission denied", "a\\nb\\x1b[31m.txt")
    if what == "rename": raise FileNotFoundError(2, "No such file or directory", "a", None, "b")
    if what == "many":
        for number in range(100000): click.echo(number)
    say("working")
    click.echo(f"{some_number} {text}")

toy.main()
"""


def toy(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    script = tmp_path / "toy.py"
    script.write_text(TOY)
    return subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (["config"], 2, "toy: error: bad config: try \\x1b[31manother"),
        (["problem"], 1, "toy: error: one failed"),
        (["oserror"], 1, "toy: error: /no/such/file: No such file or directory"),
        (["interrupt"], 130, "toy: interrupted"),
        (["exit with text"], 1, "toy: error: no good"),
        (["end of file"], 1, "toy: unexpected error: EOFError: ran out of input"),
        (["memory"], 1, "toy: error: not enough memory wanted 9 GiB"),
        (["odd name"], 1, "toy: error: a b\\x1b[31m.txt: Permission denied"),
        (["rename"], 1, "toy: error: a -> b: No such file or directory"),
        (
            ["--some-numbr", "3"],
            2,
            "toy: error: no option --some-numbr, did you mean --some_number? (see toy --help)",
        ),
        (
            ["--text", "--quiet"],
            2,
            "toy: error: --text needs a value, and --quiet behind it is an option; --text=--quiet means the word "
            "itself (see toy --help)",
        ),
        (
            ["--text", "--some-number=3"],
            2,
            "--text needs a value, and --some-number=3 behind it is an option",
        ),
        (["--text", "-q"], 2, "--text needs a value, and -q behind it is an option"),
        (["--zzz=3"], 2, "toy: error: no option --zzz (see toy --help)"),
        (["-x"], 2, "toy: error: no option -x (see toy --help)"),
        (["--some-number", "x"], 2, "not a valid integer"),
        (["bug"], 1, "toy: unexpected error: ValueError: deep inside"),
    ],
)
def test_failures_are_one_line(tmp_path: Path, words: list[str], status: int, line: str) -> None:
    result = toy(tmp_path, *words)
    assert result.returncode == status
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert line in result.stderr


def test_verbose_shows_where(tmp_path: Path) -> None:
    result = toy(tmp_path, "bug", "-qv")
    assert "Traceback" in result.stderr
    assert result.returncode == 1


@pytest.mark.parametrize("name", ["--some-number", "--some_number"])
def test_dashes_and_underscores_are_alike(tmp_path: Path, name: str) -> None:
    assert toy(tmp_path, name, "7").stdout == "7 \n"


def test_values_are_left_alone(tmp_path: Path) -> None:
    assert toy(tmp_path, "--text=--some-number").stdout == "1 --some-number\n"


@pytest.mark.slow
def test_quiet_and_status(tmp_path: Path) -> None:
    assert toy(tmp_path).stderr == "working\n"
    assert toy(tmp_path, "-q").stderr == ""
    assert toy(tmp_path, "status").returncode == 1
    assert toy(tmp_path, "exit").returncode == 1


def test_help_has_examples_and_exit_codes(tmp_path: Path) -> None:
    text = toy(tmp_path, "-h").stdout
    assert "Examples:\n  toy --some-number 3" in text
    assert "130  interrupted" in text


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    script = tmp_path / "toy.py"
    script.write_text(TOY)
    with subprocess.Popen(
        [sys.executable, script, "many"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_one_line(tmp_path: Path) -> None:
    script = tmp_path / "toy.py"
    script.write_text(TOY)
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, script], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (result.returncode, result.stderr) == (1, "working\ntoy: error: No space left on device\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
def test_ctrl_c_cleans_up_and_ends_with_130(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time\nfrom lorapipe_engine.command.tool import tool_command\n"
        "@tool_command('slow')\ndef slow():\n"
        "    try:\n        print('begun', flush=True)\n        time.sleep(60)\n"
        "    finally:\n        print('cleaned up', flush=True)\nslow.main()\n"
    )
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "cleaned up\n", "slow: interrupted\n")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--text=--quiet"], "--quiet"),
        (["--text", "-1"], "-1"),
        (["--text", "--other"], "--other"),
        (["--text", "x", "--", "--text"], "x"),
        (["--text", "~/x"], f"{Path.home()}/x"),
        (["--text=~/x y"], f"{Path.home()}/x y"),
        (["--text=~"], "~"),
        (["--text", "a ~/x"], "a ~/x"),
    ],
)
def test_values_are_the_words_behind_their_options(tmp_path: Path, words: list[str], text: str) -> None:
    done = toy(tmp_path, *words)
    assert (done.returncode, done.stdout) == (0, f"1 {text}\n")
