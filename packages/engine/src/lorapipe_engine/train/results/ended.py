"""What a queue remembers of each of its runs, beside the results: so that the same command, given again, passes by what
is done and makes anew what a killed run left without a state.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lorapipe_engine.command.documents import parse_json
from lorapipe_engine.errors import ConfigError, LoraError
from lorapipe_engine.files.hashes import sha256_file
from lorapipe_engine.files.writing.atomic import atomic_write
from lorapipe_engine.files.writing.openfolder import is_link_path
from lorapipe_engine.settings import RunSettings
from lorapipe_engine.train.results.outputs import metrics_file, read_metrics

_MOST = 1 << 22


@dataclass(frozen=True)
class Ended:
    """How a run ended: its files by their names, each with its sha256; mean loss of late and validation loss at the
    end (None: not measured); seconds."""

    files: Mapping[str, str]
    loss: float | None
    validation: float | None
    seconds: float


@dataclass(frozen=True)
class Remembered:
    """A run that a queue has begun: what it was ``asked`` for (see :func:`.state.purpose`), and how it ended, if it
    did."""

    asked: Mapping[str, Any]
    ended: Ended | None = None


def record_file(run: RunSettings) -> Path:
    """Where it is remembered."""
    return run.output_dir / f"{run.output_name}.run.json"


def write_record(run: RunSettings, remembered: Remembered) -> None:
    """Remember a run. Raises OutputError."""
    with atomic_write(record_file(run), force=True) as file:
        file.write(json.dumps(asdict(remembered), indent=1).encode() + b"\n")


def forget_record(run: RunSettings) -> None:
    """Have a run that is trained by itself be none of a queue's, which would take its results for its own."""
    with suppress(LoraError, OSError):
        if read_record(run) is not None:
            record_file(run).unlink()


def read_record(run: RunSettings) -> Remembered | None:
    """What is remembered of a run of this output. Raises ConfigError for a file that no queue has written."""
    path = record_file(run)
    if not path.exists() and not is_link_path(path):
        return None
    with suppress(LoraError, OSError, TypeError, ValueError, KeyError, AttributeError):
        if not is_link_path(path) and path.stat().st_size <= _MOST:
            row = parse_json(path.read_text(encoding="utf-8"), str(path))
            ended = row["ended"] and Ended(**row["ended"])
            if isinstance(row["asked"], dict) and (ended is None or _is_sound(ended)):
                return Remembered(row["asked"], ended)
    raise ConfigError(
        f"{path}: is not what a queue remembers of a run, so it is not replaced; choose another --output_name, or give "
        "--overwrite"
    )


def _is_sound(ended: Ended) -> bool:
    names = all(Path(name).name == name and isinstance(value, str) for name, value in ended.files.items())
    numbers = (ended.loss, ended.validation, ended.seconds)
    return bool(ended.files) and names and all(row is None or isinstance(row, int | float) for row in numbers)


def is_intact(run: RunSettings, ended: Ended) -> bool:
    """Whether the files of a run that ended are there as it left them."""
    with suppress(OSError, LoraError):
        return all(sha256_file(run.output_dir / name) == value for name, value in ended.files.items())
    return False


def ended(run: RunSettings, files: list[Path], seconds: float) -> Ended:
    """How a run that has just written its last file ended, as its curves tell."""
    loss = validation = None
    for line in read_metrics(metrics_file(run)).splitlines():
        with suppress(ValueError):
            row = json.loads(line)
            loss = row.get("loss/average", loss)
            for kind in ("step", "epoch"):
                validation = row.get(f"loss/validation/{kind}_average", validation)
    hashes = {path.name: sha256_file(path) for path in files}
    return Ended(hashes, _finite(loss), _finite(validation), round(seconds, 1))


def _finite(value: float | None) -> float | None:
    """The number, where JSON has it."""
    return value if value is not None and math.isfinite(value) else None
