"""The command lines of a page, run as a reader would type them: what is a command, what it should print, how it is run.

A block without a language, or of sh, console or powershell, is one of commands; all others name what they are. In one
with lines that begin with ``$`` these are the commands, and the lines below each, up to the next, are what it prints;
``...`` stands for any lines, and within a line for any text. Without such lines each line is a command. Words are
compared, not figures. A block of toml or text whose first line is ``# NAME`` is a file that the page's commands find.
A comment above a block, seen in no rendered page, says what a test cannot do, or what it does otherwise:

    <!-- not run: needs a card -->             one of REASONS, and more in the same words
    <!-- run with: --max_train_steps 4 -->     words that every lora-train of the block gets, to make it short
    <!-- draw with: --steps 2 -->              the same for every lora-sample
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

from support.warm import warm_folder

REASONS = (
    "needs a card",
    "needs the network",
    "needs a server",
    "serves until it is ended",
    "takes minutes",
    "installs",
    "PowerShell",
)
# Pages with the commands of another, which a test compares, so that they are run once.
TRANSLATIONS = {"docs/guide.md": ("docs/ru/guide.md",)}
COMMANDS = ("", "sh", "console", "powershell")
OTHERS = ("toml", "python", "text", "map")
MARK = re.compile(r"^<!-- (not run|run with|draw with|ends with): (.+?) -->$")
FENCE = re.compile(r"^```(\w*)\s*$")
_NAME = re.compile(r"^# ([\w-]+\.(?:toml|txt|json))$")
# No figure is what belongs to a word, as in OUT03, fp16 and mirelune-000006.
_NUMBER = re.compile(r"(?<![A-Za-z_0-9])(?<![A-Za-z_]-)[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
_HASH = re.compile(r"\b[0-9a-f]{8,}\b")
_RUN = re.compile(r"\b\d{8}T\d{6}(?:\.\d+-[a-z-]+-[0-9a-f]{6})?(?: of [\d-]+ [\d:]+ UTC)?")
_TIME = re.compile(r"\d[\d,.]* (?:s|min|h|ms|MB/s|MiB/s|s/it|it/s)\b")
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


@dataclass(frozen=True)
class Fence:
    """Anything between two fences: the line of the first, what it is by its language, its lines, the marks above it."""

    line: int
    language: str
    inside: tuple[str, ...]
    marks: dict[str, str]


def every_page(root: Path) -> list[Path]:
    """All pages that a reader of the repository finds."""
    return [
        *sorted(root.glob("*.md")),
        *sorted((root / "docs").rglob("*.md")),
        *sorted(root.glob("packages/*/README.md")),
    ]


def pages_to_run(root: Path) -> list[Path]:
    """The pages with a command that is run, translations left out."""
    translated = [root / name for names in TRANSLATIONS.values() for name in names]
    return [
        page
        for page in every_page(root)
        if page not in translated and any("not run" not in block.marks for block in blocks_of(page))
    ]


def fences_of(page: Path) -> Iterator[Fence]:
    """Everything that stands between fences on a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    marks: dict[str, str] = {}
    at = 0
    while at < len(lines):
        line = lines[at]
        if mark := MARK.match(line.strip()):
            marks[mark[1]] = mark[2]
        elif fence := FENCE.match(line):
            end = next(n for n in range(at + 1, len(lines)) if lines[n].startswith("```"))
            yield Fence(at + 1, fence[1], tuple(lines[at + 1 : end]), marks)
            marks, at = {}, end
        elif line.strip():
            marks = {}
        at += 1


def blocks_of(page: Path) -> Iterator[Block]:
    """The blocks of a page that hold command lines, in order."""
    for fence in fences_of(page):
        if fence.language in COMMANDS:
            yield Block(fence.line, _commands(fence.inside, fence.line + 1), fence.marks)


def files_of(page: Path) -> dict[str, str]:
    """The files that a page shows, by name: their text."""
    shown = (fence.inside for fence in fences_of(page) if fence.language in OTHERS and fence.inside)
    named = ((_NAME.match(inside[0]), inside) for inside in shown)
    return {name[1]: "\n".join(inside) + "\n" for name, inside in named if name}


def _commands(lines: Sequence[str], first: int) -> tuple[Command, ...]:
    asked = any(line.startswith("$ ") for line in lines)
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


def shortened(command: str, marks: Mapping[str, str]) -> str:
    """The command with the words that the marks of its block give to every lora-train and lora-sample, at its end."""
    for mark, program in (("run with", "lora-train"), ("draw with", "lora-sample")):
        if words := marks.get(mark):
            ends = re.compile(rf"(\b{program} .*?)(?= [|>] | && |$)", re.DOTALL)
            command = ends.sub(rf"\1 {words}", command)
    return command


def ends_otherwise(command: Command, marks: Mapping[str, str], status: int) -> bool:
    """Whether a command ended otherwise than its page says: its mark, or any but 0 where it shows an error."""
    if any(" error: " in line for line in command.printed):
        return status == 0
    return status != int(marks.get("ends with", 0))


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
    status = process.wait()  # first: closing hangs up on what has not ended yet
    os.close(leader)
    return Done(status, _shown(text.decode("utf-8", "replace")))


def _environment(home: Path) -> dict[str, str]:
    """The user's, with an empty home, ours in front of other programs, and nothing of a hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LORAPIPE", "PYTEST"))}
    path = os.pathsep.join((str(warm_folder()), str(Path(sys.executable).parent), kept.get("PATH", "")))
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
    """A line without figures, hashes and names of runs, each space single."""
    return " ".join(_NUMBER.sub("#", _HASH.sub("#", _RUN.sub("#", line))).split())


def missing_line(printed: Sequence[str], lines: Sequence[str]) -> str | None:
    """The first line that a page shows and the command did not print in that place, or None."""
    return next((printed[number] for number, place in placed(printed, lines) if place is None), None)


def placed(printed: Sequence[str], lines: Sequence[str]) -> Iterator[tuple[int, int | None]]:
    """The number of each line that a page shows, without ``...`` and empty ones, and that of the line that came for it.

    The first that was not printed in its place has None, and ends it.
    """
    actual = [masked(line) for line in lines]
    at, anywhere = 0, False
    for number, line in enumerate(printed):
        if line.strip() == "...":
            anywhere = True
        elif line.strip():
            pattern = re.compile(
                ".*".join(re.escape(masked(part)) for part in line.split("...")).replace(r"\ .*", ".*")
            )
            places = range(at, len(actual)) if anywhere else range(at, min(at + 1, len(actual)))
            place = next((n for n in places if pattern.fullmatch(actual[n])), None)
            yield number, place
            if place is None:
                return
            at, anywhere = place + 1, False


def renewed(line: str, actual: str) -> str:
    """A line of a page with the figures of the line that was printed; what the page leaves out stays left out.

    A line that differs in times and names of runs alone stays as it is: those are of the machine and the day.
    """
    pieces = line.split("...")
    found = re.fullmatch(".*?".join(f"({_pattern(piece)})" for piece in pieces), actual)
    new = "...".join(found.groups()) if found else line
    return line if _lasting(new) == _lasting(line) else new


def _pattern(piece: str) -> str:
    """An expression for a piece of a line with any figures, hashes and names of runs, and spaces of any width."""
    figure = f"(?:{_RUN.pattern}|{_HASH.pattern}|{_NUMBER.pattern})"
    words = re.escape(masked(piece)).replace(r"\#", figure).replace(r"\ ", r"\s+")
    return rf"\s*{words}\s*" if words else ""


def _lasting(line: str) -> str:
    return _RUN.sub("#", _TIME.sub("#", line))
