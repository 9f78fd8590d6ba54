"""kohya's file names for results, and which older ones to remove."""

from __future__ import annotations

from pathlib import Path

from lorapipe_engine.settings import RunSettings

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


def planned_networks(run: RunSettings, epochs: int, steps_per_epoch: int, steps: int) -> tuple[Path, ...]:
    """The networks that a run of ``steps`` leaves, in the order in which they are saved."""
    folder, name, suffix = run.output_dir, run.output_name, f".{run.save_model_as}"
    saved: list[tuple[int, Path]] = []
    if every := run.save_every_n_epochs:
        numbers = [epoch for epoch in range(every, epochs + 1, every) if epoch * steps_per_epoch < steps]
        gone = stale_epoch(numbers[-1], every, run.save_last_n_epochs) if numbers else None
        kept = [epoch for epoch in numbers if epoch > (gone or 0)]
        saved += [(epoch * steps_per_epoch, epoch_file(folder, name, epoch, suffix)) for epoch in kept]
    if every := run.save_every_n_steps:
        numbers = list(range(every, steps, every))
        gone = stale_step(numbers[-1], every, run.save_last_n_steps) if numbers else None
        saved += [(step, step_file(folder, name, step, suffix)) for step in numbers if step > (gone or 0)]
    in_order = [path for _, path in sorted(saved, key=lambda row: row[0])]
    return (*in_order, final_file(folder, name, suffix))
