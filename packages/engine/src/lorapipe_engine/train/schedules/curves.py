"""The curves of the field, with transformers' and diffusers' formulas: λ over the run's progress p in 0..1."""

from __future__ import annotations

import math

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.train.schedules.kinds import (
    CYCLES,
    FLOOR,
    POWER,
    Multiplier,
    ScheduleKind,
    ScheduleSettings,
    with_warmup,
)


def constant(_: ScheduleSettings) -> Multiplier:
    """λ = 1."""
    return lambda _step: 1.0


def constant_with_warmup(settings: ScheduleSettings) -> Multiplier:
    """λ = 1 after the warm-up."""
    return with_warmup(settings, lambda _p: 1.0)


def linear(settings: ScheduleSettings) -> Multiplier:
    """λ = 1 - p."""
    return with_warmup(settings, lambda p: 1 - p)


def cosine(settings: ScheduleSettings) -> Multiplier:
    """λ = ½(1 + cos πp)."""
    return with_warmup(settings, _half_wave)


def cosine_with_restarts(settings: ScheduleSettings) -> Multiplier:
    """n cycles are n - 1 restarts; each jumps back to the full rate in one step."""
    return with_warmup(settings, lambda p: 0.0 if p >= 1 else _half_wave((settings.cycles * p) % 1.0))


def polynomial(settings: ScheduleSettings) -> Multiplier:
    """λ = e + (1 - e)(1 - p)^power with e = 1e-7 / rate: a power under 1 keeps the rate high for longer."""
    end = 1e-7 / settings.base
    if end > 1:
        raise ConfigError(f"lr_scheduler: polynomial ends at 1e-7, above the rate {settings.base:g}")
    return with_warmup(settings, lambda p: float((1 - end) * (1 - p) ** settings.power + end))


def cosine_with_min_lr(settings: ScheduleSettings) -> Multiplier:
    """The cosine, down to ``min_ratio`` of the rate; with n cycles it comes back up n - 1 times, smoothly."""
    floor = settings.min_ratio
    return with_warmup(
        settings, lambda p: max(0.0, floor + (1 - floor) * _half_wave(2 * p * (settings.cycles / 2)))
    )


def rex(settings: ScheduleSettings) -> Multiplier:
    """λ = (1 - p) / ((1 - d) + d(1 - p)) (Chen et al. 2021); d from 0 (linear) to just below 1 (stays high)."""
    d = float(settings.arguments.get("d", 0.5))
    if not 0 <= d < 1:
        raise ConfigError(f"lr_scheduler_args: d={d:g} of rex is not in 0..1")
    return with_warmup(settings, lambda p: (1 - p) / ((1 - d) + d * (1 - p)))


def _half_wave(p: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * p))


KINDS = {
    "constant": ScheduleKind(make=constant, warms_up=False, warmup=0.0),
    "constant_with_warmup": ScheduleKind(make=constant_with_warmup),
    "linear": ScheduleKind(make=linear),
    "cosine": ScheduleKind(make=cosine),
    "cosine_with_restarts": ScheduleKind(make=cosine_with_restarts, reads=(CYCLES,)),
    "polynomial": ScheduleKind(make=polynomial, reads=(POWER,)),
    "cosine_with_min_lr": ScheduleKind(make=cosine_with_min_lr, reads=(CYCLES, FLOOR)),
    "rex": ScheduleKind(make=rex, arguments={"d": 0.5}),
}
