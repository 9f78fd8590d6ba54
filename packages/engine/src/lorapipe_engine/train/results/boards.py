"""Where curves are shown: TensorBoard, Weights & Biases."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lorapipe_engine.errors import MissingExtra
from lorapipe_engine.files.writing.atomic import open_growing
from lorapipe_engine.settings import RunSettings

if TYPE_CHECKING:
    from PIL.Image import Image


FLUSH = 10.0  # seconds after which curves are given to the system, for TensorBoard to see


class Board(Protocol):
    """What a run tells of itself; ``step`` counts optimizer steps from 1."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None: ...

    def text(self, tag: str, text: str) -> None: ...

    def picture(self, step: int, tag: str, image: Image) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """An events file in a folder, which is opened once: TensorBoard's own writer opens it by its name every time."""

    def __init__(self, folder: Path, inside: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self._event: Any = Event
        self._summary: Any = summary
        # TensorBoard reads files with this in their names, in the order of their names.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.0"
        self._file = open_growing(folder / name, force=False, inside=inside)
        self._writer: Any = RecordWriter(self._file)
        self._flushed = time.monotonic()
        self._write(file_version="brain.Event:2")
        self._file.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._write(summary=self._summary.scalar(tag, value), step=step)

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        self.scalars(epoch, values)

    def text(self, tag: str, text: str) -> None:
        # Indented, it is shown as it stands.
        self._write(summary=self._summary.text(tag, "    " + text.replace("\n", "\n    ")), step=0)

    def picture(self, step: int, tag: str, image: Image) -> None:
        self._write(summary=self._summary.image(tag, np.asarray(image), dataformats="HWC"), step=step)

    def _write(self, **values: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **values).SerializeToString())
        if time.monotonic() - self._flushed > FLUSH:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._file.close()


class WeightsAndBiases:
    """A run at wandb.ai, or in the folder with WANDB_MODE=offline. Epochs have an axis of their own."""

    def __init__(self, folder: Path, run: RunSettings) -> None:
        wandb = _wandb()
        if run.wandb_api_key:
            # Its login would write the key into a file of the user's.
            os.environ["WANDB_API_KEY"] = run.wandb_api_key
        self._run: Any = wandb.init(
            project=run.log_tracker_name or "lorapipe",
            name=run.wandb_run_name or run.output_name,
            dir=str(folder),
            settings=wandb.Settings(silent=True),
        )
        self._image = wandb.Image
        self._run.define_metric("loss/epoch_average", step_metric="epoch")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "epoch": epoch})

    def text(self, tag: str, text: str) -> None:
        self._run.config.update({tag: text})

    def picture(self, step: int, tag: str, image: Image) -> None:
        self._run.log({tag: self._image(image)}, step=step)

    def close(self) -> None:
        self._run.finish()


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise MissingExtra(
            "log_with wandb needs a package that is not installed: pip install wandb"
        ) from error
    return wandb


def check_boards(run: RunSettings) -> None:
    """Raise MissingExtra for a package that is not there."""
    if run.log_with != "tensorboard":
        _wandb()


def open_boards(folder: Path, run: RunSettings, inside: Path) -> list[Board]:
    """The boards that ``log_with`` names, with their files in ``folder``, a new one below ``inside``."""
    boards: list[Board] = []
    if run.log_with in ("tensorboard", "all"):
        boards.append(TensorBoard(folder, inside))
    if run.log_with in ("wandb", "all"):
        boards.append(WeightsAndBiases(folder, run))
    return boards
