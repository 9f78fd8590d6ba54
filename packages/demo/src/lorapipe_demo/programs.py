"""The tools' commands, run and shown as a user would type them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import MissingExtra, ProblemFound

# Where each command begins: module and function.
TOOLS = {
    "lora-tag": ("lorapipe_tagger.cli", "main"),
    "lora-clean": ("lorapipe_dataset.clean.cli", "main"),
    "lora-repeats": ("lorapipe_dataset.repeats.cli", "main"),
    "lora-check": ("lorapipe_dataset.check.cli", "main"),
    "lora-train": ("lorapipe_engine.cli", "train_main"),
    "lora-sample": ("lorapipe_engine.sample_cli", "sample_main"),
    "lora-grid": ("lorapipe_inspect.grid.cli", "main"),
    "lora-inspect": ("lorapipe_inspect.cli", "main"),
    "lora-extract": ("lorapipe_resize.extract.cli", "main"),
    "lora-resize": ("lorapipe_resize.cli", "main"),
    "lora-merge": ("lorapipe_merge.cli", "main"),
}


def require_tools() -> None:
    """Raise MissingExtra naming the packages of the tools that are not there."""
    modules = dict.fromkeys(module.partition(".")[0] for module, _ in TOOLS.values())
    missing = [module.replace("_", "-") for module in modules if find_spec(module) is None]
    if missing:
        packages = " ".join(missing).replace("lorapipe-dataset", "lorapipe-dataset-tools")
        raise MissingExtra(f"the demo runs tools that are not installed: pip install {packages}")


def run(*pipe: Sequence[str], folder: Path | None = None, allowed: Sequence[int] = (0,)) -> str:
    """Run commands in ``folder``, each with the one before as its standard input; what the last writes to stdout.

    The line is told first. Raises ProblemFound if one of them ends with another status than those ``allowed``.
    """
    say("")
    say(f"$ {' | '.join(map(_line, pipe))}")
    started: list[subprocess.Popen[str]] = []
    try:
        return _output_of(pipe, folder, allowed, started)
    except BaseException:
        # An interrupt of this process alone, or SIGTERM, does not reach them.
        for process in started:
            process.terminate()
        for process in started:
            process.wait()
        raise


def _output_of(
    pipe: Sequence[Sequence[str]],
    folder: Path | None,
    allowed: Sequence[int],
    started: list[subprocess.Popen[str]],
) -> str:
    """What the last of the commands writes; each is put in ``started`` as it starts."""
    before: IO[str] | int = subprocess.DEVNULL
    for command in pipe:
        process = subprocess.Popen(
            _words(command), stdin=before, stdout=subprocess.PIPE, cwd=folder, text=True, encoding="utf-8"
        )
        if not isinstance(before, int):
            before.close()  # the process has its own
        started.append(process)
        before = process.stdout or subprocess.DEVNULL
    output, _ = started[-1].communicate()
    for command, process in zip(pipe, started, strict=True):
        if process.wait() not in allowed:
            raise ProblemFound(f"{command[0]} failed with exit status {process.returncode}")
    return output


def say_lines(text: str) -> None:
    """Show what a command wrote, line by line."""
    for line in text.rstrip().splitlines():
        say(line)


def _words(command: Sequence[str]) -> list[str]:
    module, function = TOOLS[command[0]]
    return [sys.executable, "-c", f"from {module} import {function}; {function}()", *command[1:]]


def _line(command: Sequence[str]) -> str:
    return " ".join(f'"{word}"' if " " in word or "*" in word or not word else word for word in command)
