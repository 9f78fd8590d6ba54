"""``--fix`` and ``--undo``: do what :mod:`lorapipe_dataset.check.mend` planned, or take it back."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from lorapipe_dataset.check.ledger import Ledger, open_ledger, undo_last
from lorapipe_dataset.check.mend import FIXABLE, Repairs
from lorapipe_dataset.check.rules import RULES
from lorapipe_dataset.output import printable
from lorapipe_engine.command import say
from lorapipe_engine.errors import ConfigError, InputError, OutputError


def check_fixable(rules: Sequence[str]) -> None:
    """Raise ConfigError for a rule that a program cannot mend."""
    for name in rules:
        if name not in FIXABLE:
            raise ConfigError(f"--fix {name}: cannot be mended by itself; {RULES[name].fix}")


def one_root(roots: Sequence[Path]) -> Path:
    """The folder that keeps the changes. Raises ConfigError where there are several."""
    if len(roots) != 1:
        raise ConfigError("--fix and --undo take one dataset at a time")
    return roots[0]


def apply(repairs: Repairs, root: Path, *, dry_run: bool) -> int:
    """Make the changes, or show them; returns how many could not be made."""
    if dry_run:
        for line in show(repairs):
            click.echo(line, err=True)
        return 0
    if not repairs:
        say("nothing to mend")
        return 0
    failures = 0
    with open_ledger(root) as ledger:
        for step in _steps(repairs, ledger):
            try:
                step()
            except (OutputError, InputError, OSError) as error:
                click.echo(f"lora-check: error: {printable(str(error))}", err=True)
                failures += 1
    counts = {
        "captions rewritten": len(repairs.texts),
        "files moved away": len(repairs.removed),
        "files renamed": len(repairs.renamed),
        "captions copied": len(repairs.copies),
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    say(f"mended: {told}; --undo takes it back" + (f"; {failures} failed" if failures else ""))
    return failures


def _steps(repairs: Repairs, ledger: Ledger) -> Iterator[Callable[[], None]]:
    for path, (old, new) in repairs.texts.items():
        yield lambda path=path, old=old, new=new: ledger.rewrite(path, old, new.encode())  # type: ignore[misc]
    for source, target in repairs.copies:
        yield lambda source=source, target=target: ledger.create(target, source.read_bytes())  # type: ignore[misc]
    for source, target in repairs.renamed:
        yield lambda source=source, target=target: ledger.rename(source, target)  # type: ignore[misc]
    for path in repairs.removed:
        yield lambda path=path: ledger.remove(path)  # type: ignore[misc]


def show(repairs: Repairs) -> Iterator[str]:
    """The changes as a diff and a list."""
    for path, (old, new) in repairs.texts.items():
        before = old.decode("utf-8-sig").splitlines()
        rows = list(difflib.unified_diff(before, new.splitlines(), lineterm="", n=0))
        yield printable(str(path))
        yield from (printable(row) for row in rows if row[:2] not in ("--", "++", "@@"))
    for source, target in repairs.copies:
        yield printable(f"copy {source} -> {target.name}")
    for source, target in repairs.renamed:
        yield printable(f"rename {source} -> {target.name}")
    for path in repairs.removed:
        yield printable(f"move away {path}")
    if not repairs:
        yield "nothing to mend"


def undo(root: Path, *, dry_run: bool) -> int:
    """Take the last --fix back; returns the exit status."""
    done = undo_last(root, dry_run=dry_run)
    for line in done.lines:
        say(printable(line))
    for line in done.left:
        click.echo(f"lora-check: error: {printable(line)}; left as it is", err=True)
    say(f"{len(done.lines)} changes {'would be ' if dry_run else ''}taken back")
    return 1 if done.left else 0
