"""kohya's file names for results, and which older ones to remove."""

from __future__ import annotations

from pathlib import Path


def epoch_file(folder: Path, name: str, epoch: int) -> Path:
    """Result after an epoch (1-based): ``name-000001.safetensors``."""
    return folder / f"{name}-{epoch:06d}.safetensors"


def step_file(folder: Path, name: str, step: int) -> Path:
    """Result after a step: ``name-step00000100.safetensors``."""
    return folder / f"{name}-step{step:08d}.safetensors"


def final_file(folder: Path, name: str) -> Path:
    """Result at the end: ``name.safetensors``."""
    return folder / f"{name}.safetensors"


def stale_epoch(epoch: int, every: int, last: int | None) -> int | None:
    """The epoch whose file goes when the one of ``epoch`` is saved, keeping the last ``last`` epochs."""
    if last is None:
        return None
    old = epoch - every * last
    return old if old > 0 else None


def stale_step(step: int, every: int, last: int | None) -> int | None:
    """The step whose file goes: the largest multiple of ``every`` at or below ``step - last - 1``."""
    if last is None:
        return None
    old = (step - last - 1) // every * every
    return old if old > 0 else None
