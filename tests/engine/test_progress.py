"""Progress bars: for people who watch, and for nobody else."""

from __future__ import annotations

import os
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


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("quiet", [False, True])
def test_a_bar_on_a_terminal_unless_quiet(quiet: bool) -> None:
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    words = ["-q"] if quiet else []
    try:
        result = subprocess.run(
            [sys.executable, "-c", TOY, *words], stdout=subprocess.PIPE, stderr=theirs, text=True, check=True
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
    assert result.stdout == f"{not quiet}\n"
    assert (b"counting" in shown, b"sheep" in shown) == (not quiet, not quiet)
    assert bool(shown) is not quiet
