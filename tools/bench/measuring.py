"""What benchmarks share: a command's time, CPU seconds and peak memory, a folder to work in, rows that are printed."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Job:
    """One command. ``copied`` is the file that ``cp`` is timed on; ``outputs`` are removed before every run.

    ``start`` is the same command on next to nothing: its seconds do not count against ``cp``. Goals: wall seconds,
    wall seconds beyond the start over ``cp``'s, and peak MB. ``peer`` is sd-scripts' command for the same
    work, relative to its folder.
    """

    name: str
    command: Sequence[str]
    copied: Path
    outputs: Sequence[Path] = ()
    goal_seconds: float | None = None
    goal_ratio: float | None = None
    goal_megabytes: float | None = None
    start: Sequence[str] = ()
    peer: Sequence[str] = ()
    peer_outputs: Sequence[Path] = field(default_factory=tuple)


@dataclass(frozen=True)
class Timing:
    """Medians over the runs: seconds by the clock, seconds of CPU, peak resident MB."""

    wall: float
    cpu: float
    megabytes: float


def measure(
    command: Sequence[str], outputs: Sequence[Path], repeat: int, python_path: Path | None = None
) -> Timing:
    """Run a command ``repeat`` times. Raises RuntimeError with the end of its output if it fails."""
    environment = os.environ | ({"PYTHONPATH": str(python_path)} if python_path else {})
    # An installed program is compiled once, not at every start.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    runs = [_measure_once(command, outputs, environment) for _ in range(repeat)]
    return Timing(*(statistics.median(column) for column in zip(*runs, strict=True)))


def _measure_once(
    command: Sequence[str], outputs: Sequence[Path], environment: Mapping[str, str]
) -> tuple[float, float, float]:
    for output in outputs:
        output.unlink(missing_ok=True)
    with tempfile.TemporaryFile() as talk:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=talk, stderr=talk, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            talk.seek(0)
            raise RuntimeError(
                f"{' '.join(map(str, command))}\n{talk.read()[-2000:].decode(errors='replace')}"
            )
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit


@contextmanager
def work_folder(given: Path | None) -> Iterator[Path]:
    """The folder that was given, made where it is not there, or a temporary one."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    folder = Path(tempfile.mkdtemp(prefix="lorapipe-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def print_row(row: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a row as one line: a JSON object, or names with values."""
    words = "  ".join(f"{key} {value}" for key, value in row.items())
    print(json.dumps(row) if as_json else words, flush=True)
