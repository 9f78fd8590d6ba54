"""Runs a command that gets SIGTERM right before one of the files that it works on is opened, renamed or linked.

python terminating.py MODULE COMMAND MOMENT COUNT_FILE WORDS...

MOMENT counts from 1; 0: it gets none. How many moments there were is written to COUNT_FILE. The signal is a real one,
which the process sends to itself.
"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    module, name, moment, counted, *words = sys.argv[1:]
    command = getattr(import_module(module), name)
    here, seen = Path.cwd(), 0

    def watch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in ("open", "os.rename", "os.link") or not _is_here(args[0], here):
            return
        if signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN):
            return  # the command has not begun, or has had its signal
        seen += 1
        if seen == int(moment):
            os.kill(os.getpid(), signal.SIGTERM)

    sys.addaudithook(watch)
    try:
        command.main(words, prog_name=command.name)
    finally:
        total = seen
        Path(counted).write_text(str(total))


def _is_here(path: Any, here: Path) -> bool:
    """Whether a path is in the current folder, or relative, as names in a folder held open are."""
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    place = Path(os.fsdecode(path))
    return not place.is_absolute() or place.is_relative_to(here)


if __name__ == "__main__":
    main()
