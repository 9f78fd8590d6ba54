"""What a run will do, worked out from its settings before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings import ModelSettings, RunSettings

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
class RunPlan:
    """Length of the run: batches an epoch, optimizer steps an epoch, epochs, steps in all."""

    batches: int
    steps_per_epoch: int
    epochs: int
    steps: int


def plan_run(batches: int, run: RunSettings, accumulation: int) -> RunPlan:
    """Epochs go before steps; the last epoch may be cut by ``max_train_steps``."""
    steps_per_epoch = -(-batches // accumulation)
    if run.max_train_epochs is not None:
        return RunPlan(batches, steps_per_epoch, run.max_train_epochs, run.max_train_epochs * steps_per_epoch)
    epochs = -(-run.max_train_steps // steps_per_epoch)
    return RunPlan(batches, steps_per_epoch, epochs, run.max_train_steps)


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
