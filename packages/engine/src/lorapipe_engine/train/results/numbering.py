"""kohya's file names for results, and which older ones to remove."""

from __future__ import annotations

from pathlib import Path

SUFFIX = ".safetensors"


def epoch_file(folder: Path, name: str, epoch: int, suffix: str = SUFFIX) -> Path:
    """Result after an epoch (1-based): ``name-000001.safetensors``."""
    return folder / f"{name}-{epoch:06d}{suffix}"


def step_file(folder: Path, name: str, step: int, suffix: str = SUFFIX) -> Path:
    """Result after a step: ``name-step00000100.safetensors``."""
    return folder / f"{name}-step{step:08d}{suffix}"


def final_file(folder: Path, name: str, suffix: str = SUFFIX) -> Path:
    """Result at the end: ``name.safetensors``."""
    return folder / f"{name}{suffix}"


def best_file(folder: Path, name: str, suffix: str = SUFFIX) -> Path:
    """The network of the lowest validation loss: ``name-best.safetensors``."""
    return folder / f"{name}-best{suffix}"


def average_of(path: Path) -> Path:
    """The average beside a result: ``name-000001-ema.safetensors``."""
    return path.with_stem(f"{path.stem}-ema")


def end_state(folder: Path, name: str) -> Path:
    """State at the end: ``name-end.state``; ``name.state`` is that of a run that is not finished."""
    return folder / f"{name}-end.state"


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
