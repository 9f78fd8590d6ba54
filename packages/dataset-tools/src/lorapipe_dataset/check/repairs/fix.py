"""``--fix`` and ``--undo``: do what :mod:`lorapipe_dataset.check.repairs.mend` planned, or take it back."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from lorapipe_dataset.check.repairs.mend import FIXABLE, Repairs
from lorapipe_dataset.check.rules import RULES
from lorapipe_engine.changes.journal import Change, Folder, Journal
from lorapipe_engine.changes.undo import undo as take_back
from lorapipe_engine.command.text import printable
from lorapipe_engine.command.tool import complain, say, show
from lorapipe_engine.errors import ConfigError, LoraError, OutputError
from lorapipe_engine.pictures.captions import decode_caption

TOOL = "lora-check"
_REWRITTEN, _REMOVED = "captions rewritten", "files moved away"
_RENAMED, _COPIED = "files renamed", "captions copied"


def check_fixable(rules: Sequence[str]) -> None:
    """Raise ConfigError for a rule that a program cannot mend."""
    for name in rules:
        if name not in FIXABLE:
            raise ConfigError(f"--fix {name}: cannot be mended by itself; {RULES[name].fix}")


def apply(repairs: Repairs, *, dry_run: bool, roots: Sequence[Path] = ()) -> int:
    """Make the changes, or show them; returns how many could not be made.

    ``roots``: the folders that the user named; links below them are not followed.
    """
    for left, why in repairs.left.items():
        complain(f"{left}: {why}")
    failures = len(repairs.left)
    if dry_run:
        show(*changes_shown(repairs), err=True)
        return failures
    if not repairs:
        if not failures:
            say("nothing to mend")
        return failures
    run = Journal(TOOL)
    done = Counter[str]()
    uncopied: set[Path] = set()
    for path, part in repairs.by_folder().items():
        try:
            root = next((root for root in roots if root in path.parents), None)
            with run.folder(path, root) as folder:
                errors = list(_change(folder, part, uncopied))
            done.update(_counts(part))
            done.subtract(what for what, _ in errors)
            reasons = [error for _, error in errors]
        except LoraError as error:
            reasons = [error]
            uncopied |= {copy.source for copy in part.copies}
        for reason in reasons:
            complain(str(reason))
        failures += len(reasons)
    if run.changed:
        counted = ", ".join(f"{count} {what}" for what, count in done.items() if count > 0)
        say(f"mended: {counted}; --undo takes it back" + (f"; {failures} failed" if failures else ""))
    else:
        say("nothing was changed")
    return failures


def _change(folder: Folder, part: Repairs, uncopied: set[Path]) -> Iterator[tuple[str, LoraError]]:
    """Make the changes in a folder; yields what went wrong, and what it was to be.

    ``uncopied``: captions that could not be copied, so they stay; those of this folder are added.
    """
    copies = {copy.target.name: copy for copy in part.copies}
    changes = [Change(path.name, old, new.encode()) for path, (old, new) in part.texts.items()]
    changes += [Change(name, copy.before, copy.data) for name, copy in copies.items()]
    for name, failure in folder.write(changes).items():
        if name in copies:
            uncopied.add(copies[name].source)
        yield _COPIED if name in copies else _REWRITTEN, failure
    for source, target in part.renamed:
        try:
            folder.rename(source.name, target.name)
        except LoraError as error:
            yield _RENAMED, error
    for path in part.removed:
        try:
            if path in uncopied:
                raise OutputError(f"{path}: could not be copied, so it stays")
            folder.remove(path.name)
        except LoraError as error:
            yield _REMOVED, error


def _counts(repairs: Repairs) -> dict[str, int]:
    return {
        _REWRITTEN: len(repairs.texts),
        _REMOVED: len(repairs.removed),
        _RENAMED: len(repairs.renamed),
        _COPIED: len(repairs.copies),
    }


def changes_shown(repairs: Repairs) -> Iterator[str]:
    """The changes as a diff and a list."""
    for path, (old, new) in repairs.texts.items():
        before = decode_caption(old, path).splitlines()
        rows = list(difflib.unified_diff(before, new.splitlines(), lineterm="", n=0))
        yield printable(str(path))
        yield from (printable(row) for row in rows[2:] if not row.startswith("@@"))
    for copy in repairs.copies:
        near = copy.source.parent == copy.target.parent
        yield printable(f"copy {copy.source} -> {copy.target.name if near else copy.target}")
    for source, target in repairs.renamed:
        yield printable(f"rename {source} -> {target.name}")
    for path in repairs.removed:
        yield printable(f"move away {path}")
    if not repairs:
        yield "nothing to mend"


def undo(folders: Sequence[Path], *, run: str | None = None, dry_run: bool) -> int:
    """Take a --fix back, by default the user's last one; returns the exit status."""
    done = take_back(folders, TOOL, run=run, dry_run=dry_run, tell=say)
    for step in done.steps if dry_run else ():
        show(f"would {step}")
    for path in done.restored:
        say(f"{path}: {'would be ' if dry_run else ''}as it was")
    for line in done.failures:
        complain(line)
    say(f"{len(done.restored)} changes {'would be ' if dry_run else ''}taken back")
    return 1 if done.failures else 0
