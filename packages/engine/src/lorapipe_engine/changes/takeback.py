"""``--undo`` of a tool: take its last run back and say what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorapipe_engine.changes.undo import undo
from lorapipe_engine.command.records import check_words
from lorapipe_engine.command.tool import complain, say, show
from lorapipe_engine.errors import InputError


def take_back(words: Sequence[str], tool: str, *, run: str | None, dry_run: bool) -> int:
    """Undo the last run of ``tool`` (or ``run``) in the folders; the exit status. Raises InputError where none is
    named, or there is nothing to take back.
    """
    if not words:
        raise InputError("--undo: name the folders")
    check_words(words)
    folders = [Path(word) for word in words]
    done = undo(folders, tool, run=run, dry_run=dry_run, tell=lambda line: say(f"{tool}: {line}"))
    for step in done.steps if dry_run else ():
        show(f"would {step}")
    for failure in done.failures:
        complain(failure)
    verb = "would be" if dry_run else "are"
    if done.restored or not done.failures:
        say(f"{tool}: {len(done.restored):,} files {verb} as before {done.run.split('.')[0]}")
    return 1 if done.failures else 0
