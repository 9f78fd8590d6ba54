"""Where curves are shown: TensorBoard, Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lorapipe_engine.errors import MissingExtra
from lorapipe_engine.settings import RunSettings

if TYPE_CHECKING:
    from PIL.Image import Image


class Board(Protocol):
    """What a run tells of itself; ``step`` counts optimizer steps from 1."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None: ...

    def text(self, tag: str, text: str) -> None: ...

    def picture(self, step: int, tag: str, image: Image) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """An events file in a folder."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def epoch(self, epoch: int, values: Mapping[str, float]) -> None:
        self.scalars(epoch, values)

    def text(self, tag: str, text: str) -> None:
        # Indented, it is shown as it stands.
        self._writer.add_text(tag, "    " + text.replace("\n", "\n    "), 0)

    def picture(self, step: int, tag: str, image: Image) -> None:
        self._writer.add_image(tag, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run at wandb.ai, or in the folder with WANDB_MODE=offline. Epochs have an axis of their own."""

    def __init__(self, folder: Path, run: RunSettings) -> None:
        wandb = _wandb()
        if run.wandb_api_key:
            wandb.login(key=run.wandb_api_key)
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


def open_boards(folder: Path, run: RunSettings) -> list[Board]:
    """The boards that ``log_with`` names."""
    found: list[Board] = []
    if run.log_with in ("tensorboard", "all"):
        found.append(TensorBoard(folder))
    if run.log_with in ("wandb", "all"):
        found.append(WeightsAndBiases(folder, run))
    return found
