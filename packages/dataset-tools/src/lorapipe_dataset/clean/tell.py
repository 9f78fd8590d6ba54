"""What ``lora-clean`` says: errors and sums on stderr, differences or records on stdout."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import click

from lorapipe_dataset.clean.files.plan import Outcome
from lorapipe_dataset.clean.options import Options
from lorapipe_engine.command.progress import QUIET
from lorapipe_engine.command.records import format_fields
from lorapipe_engine.command.text import printable
from lorapipe_engine.command.tool import complain, say

TOOL = "lora-clean"
_LETTERS = 60  # of a tag that is named
_SHOWN = 5  # captions left alone that are named; the others are counted


@dataclass
class Count:
    """What came of the captions."""

    seen: int = 0
    changed: int = 0
    empty: int = 0
    missing: int = 0
    differ: int = 0
    failed: int = 0
    left: int = 0


class Teller:
    """Says what came of captions: errors to stderr, differences or records to stdout."""

    def __init__(self, options: Options, count: Count) -> None:
        self._options = options
        self.count = count
        self._folders: dict[Path, None] = {}
        self._told: str | None = None
        piped = sys.stdout is not None and not sys.stdout.isatty()
        # Captions whose files are not touched change in the records, or in another file.
        self._apart = options.no_txt or not options.writes_texts
        self._records = options.jsonl if options.jsonl is not None else piped and not options.dry_run

    def tell(self, outcomes: list[Outcome]) -> None:
        """Count and tell what came of a batch."""
        lines: list[str] = []
        written = next((outcome for outcome in outcomes if outcome.written), None)
        if written is not None:  # a batch is of one folder
            self._folders[Path(written.job.file).parent] = None
        for outcome in outcomes:
            self._add(outcome)
            if outcome.left is not None and self.count.left <= _SHOWN:
                say(f"{TOOL}: warning: {printable(outcome.left)}")
            if outcome.error is not None and outcome.error != self._told:
                self._told = outcome.error  # what stops a whole folder is told once
                complain(_failure(outcome))
            if self._records and not outcome.job.second:
                lines += as_records(outcome, self._options.rules.trigger)
            elif self._options.dry_run and outcome.written:
                lines.append(difference(outcome))
        if lines:
            click.echo("\n".join(lines).encode("utf-8", "surrogateescape"))

    def _add(self, outcome: Outcome) -> None:
        count = self.count
        count.seen += 1
        if outcome.error is not None:
            count.failed += 1
            return
        if outcome.left is not None:
            count.left += 1
            return
        count.missing += outcome.before is None and outcome.after is None
        count.empty += outcome.after == ""
        count.differ += outcome.differs
        count.changed += outcome.written or (self._apart and _texts_differ(outcome))

    def summary(self) -> None:
        """One line for the user, and how to take it back."""
        count = self.count
        verb = "would change" if self._options.dry_run else "changed"
        parts = [f"{count.changed:,} of {count.seen:,} captions {verb}"]
        parts += [f"{count.missing:,} pictures without a caption"] * bool(count.missing)
        parts += [f"{count.empty:,} are empty"] * bool(count.empty)
        parts += [f"{count.left:,} lead out of the dataset and are left alone"] * bool(count.left)
        parts += [f"{count.failed:,} failed"] * bool(count.failed)
        say(f"{TOOL}: {', '.join(parts)}")
        if count.differ:
            say(
                f"{TOOL}: {count.differ:,} caption files say something else than their records and are left alone "
                "(see --existing)"
            )
        if self._folders and not self._options.dry_run and self._options.in_place:
            places = [str(path) for path in self._options.inputs_for_undo(self._folders)]
            say(f"{TOOL}: to take it back: {TOOL} --undo {printable(shlex.join(places))}")


def _texts_differ(outcome: Outcome) -> bool:
    return outcome.after is not None and (outcome.before or "").strip() != outcome.after


def _failure(outcome: Outcome) -> str:
    error = outcome.error or ""
    name = outcome.job.picture or outcome.job.file
    folder = Path(outcome.job.file).parent
    known = outcome.job.file in error or name in error or error.startswith(f"{folder}: ")
    return error if known else f"{name}: {error}"


def as_records(outcome: Outcome, trigger: str = "") -> list[str]:
    """The lines that go on to the next tool, one for each picture: the record that came, with the new caption and the
    trigger it has.
    """
    job = outcome.job
    data = dict(job.record.data) if job.record is not None else {}
    if outcome.error is not None:
        data["error"] = outcome.error
    elif outcome.after is not None:
        data["caption"] = outcome.after if outcome.passed is None else outcome.passed
        data |= {"trigger": trigger} if trigger else {}
    path = str(job.record.path) if job.record is not None else job.picture or job.file
    return [format_fields(one, data) for one in (path, *job.others)]


def difference(outcome: Outcome) -> str:
    """A caption before and after, as lines with ``-`` and ``+`` under its file's name."""
    old = (outcome.before or "").splitlines()
    new = (outcome.after or "").splitlines()
    rows = [f"- {printable(line)}" for line in old] + [f"+ {printable(line)}" for line in new]
    if old == new:
        rows = ["  (byte order mark or line ends only)"]
    return "\n".join([printable(outcome.job.file), *rows])


def tell_cut(cut: Counter[str]) -> None:
    """What the limits took away."""
    if cut:
        often = sorted(cut, key=lambda tag: (-cut[tag], tag))[:5]
        most = ", ".join(printable(tag if len(tag) <= _LETTERS else f"{tag[:_LETTERS]}...") for tag in often)
        count = "1 tag" if cut.total() == 1 else f"{cut.total():,} tags"
        say(f"{TOOL}: {count} cut by the limits (most often: {most})")


def tell_frequency(tags: Counter[str]) -> None:
    """How many captions have each tag, the most frequent first, to stderr."""
    if not QUIET.get():
        for tag, number in sorted(tags.items(), key=lambda item: (-item[1], item[0])):
            say(f"{number:7d}  {tag}")
