"""Reading the curves of a run: from ``NAME.metrics.jsonl`` of lora-train, or the event files of any trainer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorapipe_engine.command.json_text import NoJson, parse_json
from lorapipe_engine.command.records import find_files
from lorapipe_engine.errors import InputError
from lorapipe_inspect.curves.events import read_events

METRICS = ".jsonl"
EVENTS = "events.out.tfevents."
_NO_NUMBER = re.compile(r"(?<=[:\s])(?:NaN|-?Infinity)(?=[,}\s])")
MOST_LINE = 1 << 20  # bytes of a line


@dataclass(frozen=True)
class Curve:
    """The finite values of one tag by optimizer step, which rises."""

    steps: Sequence[int]
    values: Sequence[float]


@dataclass(frozen=True)
class Run:
    """A run's curves by tag. ``notes``: what of the file is not among them."""

    path: Path
    curves: dict[str, Curve]
    notes: Sequence[str] = ()


Row = tuple[int, str, float]  # step, tag, value


def find_runs(words: Sequence[str]) -> list[Path]:
    """The files that words name; a folder gives its ``metrics.jsonl`` files, else the event files in it, all of them.

    Raises InputError for what is not there, and folders without curves.
    """
    paths: list[Path] = []
    for word in words:
        path = Path(word)
        if not path.is_dir():
            if not path.exists():
                raise InputError(f"{path}: no such file or folder")
            paths.append(path)
            continue
        metrics = [one for one in find_files(path, {METRICS}, recursive=True) if _is_metrics(one)]
        events = [one for one in sorted(path.rglob(f"{EVENTS}*")) if one.is_file()]
        if not metrics and not events:
            raise InputError(f"{path}: has no metrics.jsonl and no TensorBoard files ({EVENTS}...) in it")
        paths += metrics or events
    return paths


def _is_metrics(path: Path) -> bool:
    return re.fullmatch(r"(?:.*\.)?metrics(?:-\d+)?\.jsonl", path.name) is not None


def read_run(path: Path) -> Run:
    """The curves of a file. Raises InputError, MissingExtra for event files without the package that reads them."""
    if path.name.startswith(EVENTS) or EVENTS in path.name:
        rows, notes = read_events(path)
    else:
        rows, notes = _read_metrics(path)
    return _run(path, rows, notes)


def _run(path: Path, rows: Iterable[Row], notes: list[str]) -> Run:
    """Rows by tag; of a step that was recorded twice, as by a run that went on, the later row counts."""
    by_tag: dict[str, dict[int, float]] = {}
    lost: dict[str, int] = {}
    for step, tag, value in rows:
        if math.isfinite(value):
            by_tag.setdefault(tag, {})[step] = value
        else:
            lost[tag] = lost.get(tag, 0) + 1
    notes += [f"{tag}: {count:,} values are NaN or infinite, and left out" for tag, count in lost.items()]
    curves = {}
    for tag, values in by_tag.items():
        steps = sorted(values)
        curves[tag] = Curve(steps, [values[step] for step in steps])
    if not curves:
        raise InputError(f"{path}: has no curves in it")
    return Run(path, curves, notes)


def _read_metrics(path: Path) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    notes: list[str] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MOST_LINE), b""), 1):
                if not line.endswith(b"\n"):
                    notes.append(f"line {number} is cut short, as a killed run leaves it, and left out")
                    break
                if line.strip():
                    rows += _row(path, number, line)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return rows, notes


def _row(path: Path, number: int, line: bytes) -> Iterator[Row]:
    place = f"{path}, line {number}"
    try:
        text = line.decode("utf-8")
        # Python writes a loss that is none so, which is no JSON.
        data = parse_json(_NO_NUMBER.sub("null", text))
    except (NoJson, UnicodeDecodeError) as error:
        reason = error if isinstance(error, NoJson) else "not UTF-8"
        raise InputError(f"{place}: no row of a run's metrics ({reason})") from None
    step = data.pop("step", None) if isinstance(data, dict) else None
    if not isinstance(step, int) or isinstance(step, bool):
        raise InputError(f'{place}: no row of a run\'s metrics: it has no whole number as "step"')
    for tag, value in data.items():
        if value is None:
            yield step, tag, math.nan
        elif isinstance(value, int | float) and not isinstance(value, bool) and tag != "seconds":
            yield step, tag, float(value)
