"""Progress bars: for people who watch, and for nobody else."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys

import pytest

TOY = """
import sys
from lorapipe_engine.command.tool import tool_command
from lorapipe_engine.command.progress import progress

@tool_command("toy")
def toy():
    for _ in progress(3, "counting", "sheep"): pass
    with progress(2, "again") as bar: bar.update(2, loss=0.5)
    print("tqdm" in sys.modules)

toy.main()
"""


def test_no_bar_and_no_import_without_a_terminal() -> None:
    result = subprocess.run([sys.executable, "-c", TOY], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("False\n", "")


LINES = """
import time
from lorapipe_engine.command.tool import tool_command
from lorapipe_engine.command.progress import progress

@tool_command("toy")
def toy():
    clock = iter(range(0, 1000, 10))
    time.monotonic = lambda: next(clock)
    with progress(50, "drawing", "pictures", line_every=20) as bar:
        for _ in range(5): bar.update(10)

toy.main()
"""


def test_lines_with_the_time_left_where_there_is_no_terminal() -> None:
    """A clock that goes on by ten seconds: ten pictures each, a line every twenty, none at the end."""
    shown = subprocess.run([sys.executable, "-c", LINES], capture_output=True, text=True, check=True).stderr
    assert shown.splitlines() == [
        "drawing: 20 of 50 pictures, 30 s left",
        "drawing: 40 of 50 pictures, 10 s left",
    ]
    quiet = subprocess.run([sys.executable, "-c", LINES, "-q"], capture_output=True, text=True, check=True)
    assert quiet.stderr == ""


def in_terminal(code: str, *words: str, apart: bool = False) -> tuple[str, str]:
    """What a program writes to a terminal of 80 columns; with ``apart`` stdout is a pipe, and comes second."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], stdout=subprocess.PIPE if apart else theirs, stderr=theirs
        )
    finally:
        os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 65536):
            shown += block
    except OSError:  # Linux tells the end this way
        pass
    finally:
        os.close(ours)
    piped = process.communicate()[0] or b""
    assert process.returncode == 0, shown
    return shown.decode(), piped.decode()


def screen(text: str) -> list[str]:
    """The rows that a terminal shows of it: a return goes to the row's begin, what comes then is written over."""
    rows, row, column = [""], 0, 0
    for piece in re.split(r"(\x1b\[A|[\r\n])", text):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            row += 1
            rows += [""] * (row == len(rows))
        elif piece == "\x1b[A":
            row -= 1
        else:
            rows[row] = rows[row][:column].ljust(column) + piece + rows[row][column + len(piece) :]
            column += len(piece)
    return [one.rstrip() for one in rows]


needs_terminal = pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")


@needs_terminal
@pytest.mark.parametrize("quiet", [False, True])
def test_a_bar_on_a_terminal_unless_quiet(quiet: bool) -> None:
    shown, out = in_terminal(TOY, *["-q"] * quiet, apart=True)
    assert out == f"{not quiet}\n"
    assert ("counting" in shown, "sheep" in shown) == (not quiet, not quiet)
    assert bool(shown) is not quiet


TALK = """
import sys, warnings
import click
from pathlib import Path
from lorapipe_engine.command.records import Record, write_json, write_path, write_record
from lorapipe_engine.command.tool import complain, say, show, tool_command
from lorapipe_engine.command.progress import progress

@tool_command("toy")
def toy():
    with progress(9, "counting", "sheep") as bar:
        bar.update()
        show("one", "two")
        with progress(0, "within") as inner:
            inner.update()
            say("three")
        bar.update()
        click.echo(b"four")
        write_record(Record(Path("five")), jsonl=False)
        write_json({"six": 6})
        write_path(Path("seven"))
        complain("eight")
        print("nine")
        warnings.warn("ten", stacklevel=1)
        sys.stdout.buffer.write(b"eleven\\n")
        bar.update()
    print("twelve")

toy.main()
"""


@needs_terminal
def test_no_line_stands_behind_a_bar() -> None:
    """Whoever writes it, to stdout or stderr, in text or bytes."""
    rows = [row for row in screen(in_terminal(TALK)[0]) if row]
    wanted = ["one", "two", "three", "four", "five", '{"six": 6}', "seven", "toy: error: eight", "nine"]
    assert rows[:9] == wanted
    assert rows[9].endswith("UserWarning: ten")
    assert rows[-2:] == ["eleven", "twelve"]
    assert not any("sheep" in row or "within" in row for row in rows)


@needs_terminal
def test_what_goes_into_a_pipe_leaves_the_bar_alone() -> None:
    shown, out = in_terminal(TALK, apart=True)
    assert out.splitlines()[:3] == ["one", "two", "four"]
    rows = [row for row in screen(shown) if row]
    assert rows[:2] == ["three", "toy: error: eight"]
    assert not any("sheep" in row for row in rows)
