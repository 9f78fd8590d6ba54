"""The command lines of a page, run as a reader would type them: what is a command, what it should print, how it is run.

A block of a page is one of commands if it has a line that begins with ``$``, or if its first word is a program of ours.
After ``$`` stands a command; the lines below it, up to the next, are what it prints; ``...`` stands for any lines, and
within a line for any text. Words are compared, not figures. A comment above a block, seen in no rendered page, says
what a test cannot do, or what it does otherwise:

    <!-- not run: needs a card -->             one of REASONS, and more in the same words
    <!-- run with: --max_train_steps 4 -->     words that every lora-train of the block gets, to make it short
    <!-- ends with: 1 -->                      the status of the block's commands, where it is not 0
"""

from __future__ import annotations

import errno
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

REASONS = (
    "needs a card",
    "needs the network",
    "needs a server",
    "needs your own files",
    "takes minutes",
    "installs",
    "shown of other files",
    "PowerShell",
)
PROGRAMS = re.compile(r"(lora-[a-z]+|python|python3|tensorboard|git|pip|torchrun|py)\s")
_FENCE = re.compile(r"^```(\w*)\s*$")
_MARK = re.compile(r"^<!-- (not run|run with|ends with): (.+?) -->$")
_NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?")
_HASH = re.compile(r"\b[0-9a-f]{8,}\b")
_BAR = re.compile(r"^.*?\d+(it)? \[\d\d:\d\d.*?\]|^\d+it \[.*?\]")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LIMIT = 240.0  # seconds


@dataclass(frozen=True)
class Command:
    """A command line of a page, and what the page says that it prints."""

    line: int
    text: str
    printed: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """A block of command lines, with its marks."""

    line: int
    commands: tuple[Command, ...]
    marks: dict[str, str]


@dataclass(frozen=True)
class Done:
    """What a command did: its status, and the lines on the terminal."""

    status: int
    lines: list[str]


def blocks_of(page: Path) -> Iterator[Block]:
    """The blocks of a page that hold command lines, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    marks: dict[str, str] = {}
    at = 0
    while at < len(lines):
        line = lines[at]
        if mark := _MARK.match(line.strip()):
            marks[mark[1]] = mark[2]
        elif fence := _FENCE.match(line):
            end = next(n for n in range(at + 1, len(lines)) if lines[n].startswith("```"))
            inside = lines[at + 1 : end]
            if fence[1] in ("", "sh", "console", "powershell") and (commands := _commands(inside, at + 2)):
                yield Block(at + 1, commands, marks)
            marks, at = {}, end
        elif line.strip():
            marks = {}
        at += 1


def _commands(lines: list[str], first: int) -> tuple[Command, ...]:
    asked = any(line.startswith("$ ") for line in lines)
    if not asked and not (lines and PROGRAMS.match(lines[0] + " ")):
        return ()
    found: list[tuple[int, str, list[str]]] = []
    goes_on = False
    for number, line in enumerate(lines, first):
        if goes_on:
            found[-1] = (found[-1][0], f"{found[-1][1]}\n{line}", [])
        elif line.startswith("$ ") or (not asked and line.strip()):
            found.append((number, line.removeprefix("$ "), []))
        elif found:
            found[-1][2].append(line)
        goes_on = line.endswith("\\")
    return tuple(Command(number, text, tuple(printed)) for number, text, printed in found)


def shortened(command: str, words: str) -> str:
    """The command with ``words`` behind every lora-train in it."""
    return re.sub(r"\blora-train\b", f"lora-train {words}", command) if words else command


def run_in_terminal(command: str, folder: Path, home: Path) -> Done:
    """Run a command line in a terminal of 120 columns, as a person has it."""
    leader, follower = pty.openpty()
    ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
    process = subprocess.Popen(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=folder,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=_environment(home),
        start_new_session=True,
    )
    os.close(follower)
    text, ends = b"", time.monotonic() + LIMIT
    while time.monotonic() < ends:
        if not select.select([leader], [], [], 1.0)[0]:
            continue
        try:
            piece = os.read(leader, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            break
        if not piece:
            break
        text += piece
    else:
        process.kill()
    os.close(leader)
    return Done(process.wait(), _shown(text.decode("utf-8", "replace")))


def _environment(home: Path) -> dict[str, str]:
    """The user's, with an empty home, ours in front of other programs, and nothing of a hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LORAPIPE", "PYTEST"))}
    path = os.pathsep.join((str(Path(sys.executable).parent), kept.get("PATH", "")))
    own = {
        "PATH": path,
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_STATE_HOME": str(home / ".state"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "TERM": "dumb",
        "COLUMNS": "120",
        "LC_ALL": "C.UTF-8",
    }
    return kept | own


def _shown(text: str) -> list[str]:
    """The lines that stay on the terminal: what a bar wrote over is gone."""
    lines = _CONTROL.sub("", text.replace("\r\n", "\n")).split("\n")
    # A line that is written while a bar stands there follows it in the same row.
    rows = (_BAR.sub("", one.rpartition("\r")[2]).rstrip() for one in lines)
    return [row for row in rows if row]


def masked(line: str) -> str:
    """A line without figures and hashes, each space single."""
    return " ".join(_NUMBER.sub("#", _HASH.sub("#", line)).split())


def missing_line(printed: tuple[str, ...], lines: list[str]) -> str | None:
    """The first line that a page shows and the command did not print in that place, or None."""
    actual = [masked(line) for line in lines]
    at, anywhere = 0, False
    for line in printed:
        if line.strip() == "...":
            anywhere = True
        elif line.strip():
            pattern = re.compile(
                ".*".join(re.escape(masked(part)) for part in line.split("...")).replace(r"\ .*", ".*")
            )
            places = range(at, len(actual)) if anywhere else range(at, min(at + 1, len(actual)))
            place = next((n for n in places if pattern.fullmatch(actual[n])), None)
            if place is None:
                return line
            at, anywhere = place + 1, False
    return None
