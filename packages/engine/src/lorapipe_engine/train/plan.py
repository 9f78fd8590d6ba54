"""What a run will do, worked out from its settings before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from lorapipe_engine.datasets.scan import Dataset
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models.bases import resolve_base
from lorapipe_engine.pictures.batches import batches_per_epoch
from lorapipe_engine.settings import ModelSettings, RunSettings, TrainSettings
from lorapipe_engine.train.network.arguments import NetworkArgs
from lorapipe_engine.train.schedules.updates import UpdatePlan, plan_updates, stops_at_once

DTYPES = {"no": torch.float32, "float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def network_dtype(model: ModelSettings) -> torch.dtype | None:
    """What the network and its gradients are rounded to in every step; None for float32.

    Raises ConfigError where the base is not asked for in the same precision, as sd-scripts does.
    """
    wanted = [name for name, asked in (("fp16", model.full_fp16), ("bf16", model.full_bf16)) if asked]
    if not wanted:
        return None
    if wanted != [model.mixed_precision]:
        given = "; leave one of full_fp16 and full_bf16 out" if len(wanted) > 1 else ""
        raise ConfigError(f"full_{wanted[0]}: needs --mixed_precision {wanted[0]}{given}")
    return DTYPES[wanted[0]]


@dataclass(frozen=True)
class ModelPlan:
    """Which base is trained (a file, a folder or a hub id), where, and how precisely: ``precision`` is ``no``, ``fp16``
    or ``bf16``. ``network_dtype``: see :func:`network_dtype`."""

    source: Path | str
    device: torch.device
    precision: str
    network_dtype: torch.dtype | None

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights."""
        return DTYPES[self.precision]


def plan_model(model: ModelSettings, device: torch.device | None = None) -> ModelPlan:
    """Decide what does not need the base itself. ``device``: the one that a launcher has given this process.

    Raises ConfigError for a device or a precision that cannot be had, InputError for a base that is nowhere.
    """
    source = resolve_base(model.pretrained_model_name_or_path or "")
    rounded = network_dtype(model)
    device = device or choose_device(model.device)
    return ModelPlan(source, device, choose_precision(model.mixed_precision, device), rounded)


@dataclass(frozen=True)
class Length:
    """Length of the run: batches an epoch, optimizer steps an epoch, epochs, steps in all."""

    batches: int
    steps_per_epoch: int
    epochs: int
    steps: int

    def in_words(self) -> str:
        """ "8 steps in 2 epochs", "6 steps in 1.5 epochs", "1 step in 1 epoch"."""
        epochs = f"{self.steps / self.steps_per_epoch:.3g}"
        return f"{self.steps:,} step{'' if self.steps == 1 else 's'} in {epochs} epoch{'' if epochs == '1' else 's'}"


def plan_length(batches: int, run: RunSettings, accumulation: int) -> Length:
    """Epochs override steps; the last epoch may be cut by ``max_train_steps``."""
    steps_per_epoch = -(-batches // accumulation)
    if run.max_train_epochs is not None:
        return Length(batches, steps_per_epoch, run.max_train_epochs, run.max_train_epochs * steps_per_epoch)
    epochs = -(-run.max_train_steps // steps_per_epoch)
    return Length(batches, steps_per_epoch, epochs, run.max_train_steps)


@dataclass(frozen=True)
class RunPlan:
    """What a run will do, worked out once: which model, what the network is made of beyond its options, how
    long, and how it is updated."""

    model: ModelPlan
    network: NetworkArgs
    length: Length
    updates: UpdatePlan


def plan_run(
    settings: TrainSettings,
    model: ModelPlan,
    args: NetworkArgs,
    dataset: Dataset,
    parts: tuple[str, ...],
    processes: int = 1,
) -> RunPlan:
    """The plan for a scanned dataset and a base of ``parts`` (the denoiser is the last). Raises ConfigError for options
    that contradict each other or that the model cannot take."""
    sizes = [size * processes for size in dataset.batch_sizes]
    batches = batches_per_epoch(dataset.buckets, dataset.repeats, sizes)
    length = plan_length(batches, settings.run, settings.optimizer.gradient_accumulation_steps)
    updates = plan_updates(settings.optimizer, trainable(settings, parts), length.steps)
    return RunPlan(model, args, length, updates)


def trainable(settings: TrainSettings, parts: tuple[str, ...]) -> tuple[str, ...]:
    """Of the ``parts`` of a base (the denoiser is the last) those that the options leave to be trained."""
    if settings.network.network_train_unet_only or stops_at_once(settings.optimizer):
        return parts[-1:]
    return parts[:-1] if settings.network.network_train_text_encoder_only else parts


def choose_device(name: str | None) -> torch.device:
    """The named device, or the GPU if there is one. Raises ConfigError for one that is not there."""
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device: '{name}' cannot be used here ({reason})") from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # events and graphs are made on the current one
    return device


def choose_precision(name: str | None, device: torch.device) -> str:
    """``no``, ``fp16`` or ``bf16``. Raises ConfigError for fp16 on a CPU."""
    if name is None:
        if device.type != "cuda":
            return "no"
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("mixed_precision: fp16 cannot train on the CPU; use no or bf16")
    return name
