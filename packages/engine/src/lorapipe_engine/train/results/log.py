"""The records of a run: its curves, ``metrics.jsonl``, the list of files it wrote."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from lorapipe_engine.errors import OutputError
from lorapipe_engine.files.writing.atomic import open_growing
from lorapipe_engine.settings import RunSettings
from lorapipe_engine.train.results.boards import open_boards
from lorapipe_engine.train.results.outputs import metrics_file, new_log_folder, put_aside, read_metrics

if TYPE_CHECKING:
    from PIL.Image import Image


class RunLog:
    """Writes scalars, pictures and text of one run, to ``NAME.metrics.jsonl`` and the boards that it asks for.

    ``after``: the run goes on after this step; what an earlier part of it recorded up to there stays.
    """

    def __init__(self, run: RunSettings, after: int = 0) -> None:
        path = metrics_file(run)
        try:
            run.output_dir.mkdir(parents=True, exist_ok=True)
            kept = _rows_until(path, after) if after else b""
            if not after and not run.overwrite:
                put_aside(path)
            self._metrics = open_growing(path, kept, force=bool(after) or run.overwrite)
            self._boards = open_boards(new_log_folder(run), run, run.logs_inside)
        except OSError as error:
            raise OutputError(
                f"{error.filename or run.output_dir}: cannot write there ({error.strerror})"
            ) from error
        self._started = time.monotonic()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of an optimizer step under TensorBoard tags such as ``loss/current``."""
        for board in self._boards:
            board.scalars(step, values)
        row = {"step": step, "seconds": round(time.monotonic() - self._started, 3), **values}
        self._metrics.write(json.dumps(row).encode() + b"\n")
        self._metrics.flush()

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        """Record numbers of an epoch (from 1) under TensorBoard tags."""
        for board in self._boards:
            board.epoch(epoch, values)

    def text(self, tag: str, text: str) -> None:
        """Record a text, such as the configuration."""
        for board in self._boards:
            board.text(tag, text)

    def picture(self, step: int, tag: str, image: Image) -> None:
        """Record a sample picture."""
        for board in self._boards:
            board.picture(step, tag, image)

    def close(self) -> None:
        """Finish all files."""
        for board in self._boards:
            board.close()
        self._metrics.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self.close()


class NoLog(RunLog):
    """The log of a process that leaves no records."""

    def __init__(self) -> None:
        self._boards = []

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _rows_until(path: Path, step: int) -> bytes:
    """The whole lines of a metrics file up to a step; a killed run may have left half a line."""
    rows = []
    for line in read_metrics(path).splitlines(keepends=True):
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                rows.append(line)
    return b"".join(rows)
