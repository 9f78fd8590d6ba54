"""Runs of a tool that a folder has journals of: which are the user's own, and which came with the dataset."""

from __future__ import annotations

import os
import re
import stat
import time
from calendar import timegm
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lorapipe_engine.changes.journal import ENDING, HIDDEN, KEPT
from lorapipe_engine.changes.ledger import Known, remembered
from lorapipe_engine.command.text import printable
from lorapipe_engine.errors import InputError

_NAME = re.compile(r"(\d{8}T\d{6})\.\d{9}-([a-z-]+)-[0-9a-f]{6}")
_AHEAD = 60.0  # seconds by which the clock of another machine may be ahead
Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """A journal in a folder. ``known``: what the list of the user's runs has of it; ``file``: its name."""

    run: str
    folder: Path
    root: Path
    when: float  # seconds since the epoch
    known: Known | None
    file: str

    @property
    def is_rest(self) -> bool:
        """Whether the journal was put away by an undo that left files alone."""
        return self.file.endswith(KEPT)


def choose(
    folders: Sequence[Path], tool: str, name: str | None, tell: Say, passed: Collection[str] = ()
) -> list[Found]:
    """The journals of one run of ``tool`` in ``folders`` and below: of the run ``name``, else of the user's newest that
    is not among ``passed``.

    What is passed over is told. Raises InputError where there is nothing to undo.
    """
    runs, odd = _sort(folders, tool)
    runs = [one for one in runs if one.run not in passed]
    for line in odd:
        tell(f"warning: {printable(line)}")
    if name is not None:
        return _named(runs, folders[0], name.removesuffix(KEPT).removesuffix(ENDING), tool)
    rests = [one for one in runs if one.is_rest]
    runs = [one for one in runs if not one.is_rest]
    future = [one for one in runs if one.when > time.time() + _AHEAD]
    for one in future:
        tell(f"warning: {_shown(one)}: dated in the future, so it is refused; it is not undone")
    runs = [one for one in runs if one not in future]
    own = sorted((one for one in runs if one.known is not None), key=lambda one: one.run)
    strangers = [one for one in runs if one.known is None]
    if not own:
        if strangers:
            newest = max(strangers, key=lambda one: one.run)
            raise InputError(
                f"{_shown(newest)}: this user's {tool} did not write it here (it came with the dataset, or the "
                f"dataset was moved); to undo it all the same, name it: {tool} --undo --run {newest.run} "
                f"{printable(str(folders[0]))}"
            )
        if rests:
            run = max(one.run for one in rests)
            raise InputError(
                f"{folders[0]}: no run of {tool} to undo there, but {run} was taken back in part; the rest of it: "
                f"{tool} --undo --run {run} {printable(str(folders[0]))}"
            )
        raise InputError(f"{folders[0]}: no run of {tool} to undo there")
    for run in sorted({one.run for one in strangers if one.run > own[-1].run}):
        tell(
            f"warning: {run}: newer, but this user's {tool} did not write it here; passed over (--run names it)"
        )
    return [one for one in own if one.run == own[-1].run]


def _named(every: Sequence[Found], folder: Path, name: str, tool: str) -> list[Found]:
    chosen = [one for one in every if one.run == name]
    if not chosen:
        runs = sorted({one.run for one in every})[-3:]
        there = f"there are {', '.join(runs)}" if runs else "there is none"
        raise InputError(f"{folder}: no run {name!r} of {tool}; {there}")
    for one in chosen:
        if one.known is None and one.when > time.time() + _AHEAD:
            raise InputError(f"{_shown(one)}: dated in the future, so it is refused")
    return chosen


def later_runs(one: Found) -> list[str]:
    """The runs of any tool that changed files of the folder after ``one``, the last first, as commands that take them
    back."""
    names = os.listdir(one.folder / HIDDEN) if (one.folder / HIDDEN).is_dir() else []  # noqa: PTH208
    runs = sorted((name.removesuffix(ENDING) for name in names if name.endswith(ENDING)), reverse=True)
    matches = [_NAME.fullmatch(run) for run in runs if run > one.run]
    return [f"{match[2]} --undo --run {match[0]}" for match in matches if match is not None]


def date_of(when: float) -> str:
    """A run's date for people, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(when))


def _shown(one: Found) -> str:
    return f"{printable(str(one.folder))}: run {one.run} of {date_of(one.when)}"


def _sort(folders: Sequence[Path], tool: str) -> tuple[list[Found], list[str]]:
    """The journals of a tool, and lines on what is none though it looks like one."""
    known = remembered()
    runs: dict[tuple[str, str], Found] = {}
    odd: list[str] = []
    for root in folders:
        for folder, names in _hidden_folders(root, odd):
            real = os.path.realpath(folder)
            for name in names:
                run = name.removesuffix(KEPT).removesuffix(ENDING)
                if f"{run}{ENDING}" not in (name, name.removesuffix(KEPT)) or f"-{tool}-" not in name:
                    continue
                when = _when(run, tool)
                if when is None:
                    odd.append(
                        f"{folder / HIDDEN / name}: not a name that {tool} gives a journal; passed over"
                    )
                else:
                    runs[real, run] = Found(run, folder, root, when, known.get((real, run)), name)
    return list(runs.values()), list(dict.fromkeys(odd))


def _hidden_folders(root: Path, odd: list[str]) -> Iterator[tuple[Path, list[str]]]:
    if not root.is_dir():
        raise InputError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
    for parent, names, files in os.walk(root):
        hidden = os.path.join(parent, HIDDEN)  # noqa: PTH118
        if HIDDEN in names or HIDDEN in files:
            with suppress(OSError):
                if stat.S_ISDIR(os.lstat(hidden).st_mode):
                    yield Path(parent), sorted(os.listdir(hidden))  # noqa: PTH208
                elif HIDDEN in names:
                    odd.append(f"{hidden}: a link, which is not followed; passed over")
        names[:] = [name for name in names if not name.startswith(".")]


def _when(run: str, tool: str) -> float | None:
    """The time in a run's name; None for a name that no run has."""
    match = _NAME.fullmatch(run)
    if match is None or match[2] != tool or not run.isascii():
        return None
    try:
        return float(timegm(time.strptime(match[1], "%Y%m%dT%H%M%S")))
    except (ValueError, OverflowError):
        return None
