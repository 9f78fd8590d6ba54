"""What stands in the places of a run's results before it begins: looked at then, so that nothing is lost or followed.

A file of an earlier run is not replaced unasked, a link is never followed, and a file that is no result stays.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lorapipe_engine.errors import ConfigError, LoraError, OutputError
from lorapipe_engine.files.writing.openfolder import OpenFolder, is_link_path, open_folder
from lorapipe_engine.settings import RunSettings
from lorapipe_engine.settings.several import RESULT
from lorapipe_engine.train.results.numbering import end_state
from lorapipe_engine.train.results.state import SUFFIX as STATE
from lorapipe_engine.train.results.state import state_file
from lorapipe_engine.train.step.trace import trace_path

LEFTOVER_AGE = 60.0  # seconds; a younger one may be the file that another run is writing now
_OURS = b'{"step": '
_ROW = 1 << 20  # bytes of a row at most


def metrics_file(run: RunSettings) -> Path:
    """Where the curves of a run stand, a row of JSON for each step."""
    return run.output_dir / f"{run.output_name}.metrics.jsonl"


def judged_folder(run: RunSettings) -> Path:
    """Where the cells of ``--early_stop_by figures`` go."""
    return run.output_dir / f"{run.output_name}-judged"


def sample_folder(run: RunSettings) -> Path:
    """Where the pictures drawn while training go."""
    return run.output_dir / "sample"


# -------------------------------------------------------------------------------- looked at before


def check_outputs(run: RunSettings) -> None:
    """Raise ConfigError if something stands where results will, unless it may be replaced.

    Results of a run that was stopped are its own: it goes on from its state. Raises OutputError for a folder that can
    neither be written nor be made, as far as that shows without trying.
    """
    _check_place(run.output_dir)
    for folder in _folders(run):
        if is_link_path(folder):
            raise ConfigError(f"{folder}: is a link, and results are not written through links; take it away")
    if run.overwrite:
        return
    for path in (state_file(run), end_state(run.output_dir, run.output_name), metrics_file(run)):
        if is_link_path(path):
            raise ConfigError(
                f"{path}: is a link, and results are not written through links; take it away, or give --overwrite "
                "to have a file in its place"
            )
    _check_metrics(metrics_file(run))
    if state_file(run).exists() or run.resume is not None:
        return
    for path in _earlier(run):
        raise OutputError(
            f"{path} exists from an earlier run; choose another --output_name or --output_dir, or give --overwrite"
        )


def _check_place(folder: Path) -> None:
    whole = folder.absolute()
    nearest = next(place for place in (whole, *whole.parents) if os.path.lexists(place))
    is_folder = nearest.is_dir()
    if not is_folder or not os.access(nearest, os.W_OK | os.X_OK):
        why = "may not be written to" if is_folder else "is no folder"
        raise OutputError(
            f"output_dir: {folder}: cannot write there ({nearest} {why}); choose another folder"
        )


def _folders(run: RunSettings) -> Iterator[Path]:
    """The folders that a run makes below those that the user names."""
    if run.sample_prompts is not None:
        yield sample_folder(run)
    if run.by_figures is not None:
        yield judged_folder(run)
    if run.logging_dir is None:
        yield run.logs
    if run.trace_steps and run.trace_dir is None:
        yield run.traces


def _earlier(run: RunSettings) -> Iterator[Path]:
    """Results of this name that are there, sorted."""
    name = run.output_name
    for path in _listed(run.output_dir):
        result = _is_result(path, name)
        is_state = path.suffix == STATE and (result or path.stem == f"{name}-end")
        if is_state or (path.suffix == f".{run.save_model_as}" and result):
            yield path
    if run.sample_prompts is not None:
        sample = re.compile(rf"{re.escape(name)}_e?\d{{6,}}_\d+\.png")
        yield from (path for path in _listed(sample_folder(run)) if sample.fullmatch(path.name))
    if run.by_figures is not None and os.path.lexists(judged_folder(run)):
        yield judged_folder(run)
    for step in run.trace_steps:
        if os.path.lexists(trace_path(run.traces, step)):
            yield trace_path(run.traces, step)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:  # there is none yet, or it cannot be listed
        return []


def _is_result(path: Path, name: str) -> bool:
    return path.stem.startswith(name) and bool(RESULT.fullmatch(path.stem, len(name)))


# -------------------------------------------------------------------------------- curves


def _check_metrics(path: Path) -> None:
    """Raise ConfigError for a file that no run has written."""
    try:
        with open_folder(path.parent) as folder:
            status = folder.lstat(path.name)
            start = b"" if status is None else _read(folder, path.name, _ROW)
    except OSError as error:
        if not path.parent.exists():
            return
        raise ConfigError(f"{path}: is no file that can be read ({error.strerror})") from error
    first, end, _ = start.partition(b"\n")
    ours = first.startswith(_OURS)
    if ours and end:
        try:
            ours = isinstance(json.loads(first), dict)
        except (ValueError, RecursionError):
            ours = False
    if first + end and not ours:
        raise ConfigError(
            f"{path}: is not the record of a run, so it is not replaced; choose another --output_name, or give "
            "--overwrite"
        )


def read_metrics(path: Path) -> bytes:
    """The curves of an earlier part of a run; nothing where there is no such file, or a link."""
    with suppress(OSError), open_folder(path.parent) as folder:
        return _read(folder, path.name)
    return b""


def _read(folder: OpenFolder, name: str, most: int = -1) -> bytes:
    with os.fdopen(folder.open_file(name), "rb") as file:
        return file.read(most)


def put_aside(path: Path) -> Path | None:
    """Rename the curves of a run that left nothing to go on from, as ``NAME.metrics-1.jsonl``; where they are now."""
    with open_folder(path.parent) as folder:
        status = folder.lstat(path.name)
        if status is None:
            return None
        number = 1
        while folder.lstat(name := f"{path.stem}-{number}{path.suffix}") is not None:
            number += 1
        if status.st_size:
            folder.replace(path.name, name)
            return path.with_name(name)
        folder.unlink(path.name)
    return None


# -------------------------------------------------------------------------------- folders


def new_log_folder(run: RunSettings) -> Path:
    """Make the folder of this run's curves, ``PREFIX`` and the time; one that is there already is never taken."""
    run.logs_inside.mkdir(parents=True, exist_ok=True)
    stamp = f"{run.log_prefix}{time.strftime('%Y%m%d%H%M%S')}"
    with open_folder(run.logs, inside=run.logs_inside, make=True) as folder:
        for number in range(1, 1000):
            name = stamp if number == 1 else f"{stamp}-{number}"
            with suppress(FileExistsError):
                folder.mkdir(name)
                return run.logs / name / "network_train"
    raise OutputError(f"{run.logs / stamp}: exists already; try again")


def remove_leftovers(run: RunSettings, now: float | None = None) -> list[Path]:
    """Delete the unfinished hidden files that a killed run left with its results; returns those deleted.

    ``now``: seconds as of :func:`time.time`. Files younger than LEFTOVER_AGE stay.
    """
    limit = (time.time() if now is None else now) - LEFTOVER_AGE
    gone = []
    for place in (run.output_dir, sample_folder(run), judged_folder(run)):
        with suppress(OSError, LoraError), open_folder(place, inside=run.output_dir) as folder:
            for name in folder.names():
                status = folder.lstat(name) if re.fullmatch(r"\.lorapipe-.*\.tmp", name) else None
                if status is not None and status.st_mtime < limit:
                    with suppress(OSError):  # not ours to delete, or another run was faster
                        folder.unlink(name)
                        gone.append(place / name)
    return gone
