"""Curves that are counted in steps: inverse square root, warm-up / stable / decay, steps by hand, Adafactor's own."""

from __future__ import annotations

import math
from itertools import pairwise

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.train.schedules.kinds import (
    CYCLES,
    DECAY,
    FLOOR,
    TIMESCALE,
    Multiplier,
    ScheduleKind,
    ScheduleSettings,
)


def inverse_sqrt(settings: ScheduleSettings) -> Multiplier:
    """λ = 1 / √((t - W + s) / s) after the warm-up, s = lr_scheduler_timescale (default: W, or 10,000)."""
    scale = settings.timescale or settings.warmup or 10_000

    def multiplier(step: int) -> float:
        if step < settings.warmup:
            return step / settings.warmup
        return 1.0 / math.sqrt((step - settings.warmup + scale) / scale)

    return multiplier


def warmup_stable_decay(settings: ScheduleSettings) -> Multiplier:
    """1 until the last lr_decay_steps, which follow a half wave down to lr_scheduler_min_lr_ratio. The warm-up begins
    at that floor too.
    """
    stable = settings.total - settings.warmup - settings.decay
    if stable < 0:
        raise ConfigError(
            f"lr_decay_steps: {settings.decay} with a warm-up of {settings.warmup} are more than the run's "
            f"{settings.total} steps"
        )
    floor = settings.min_ratio

    def multiplier(step: int) -> float:
        if step < settings.warmup:
            return floor + (1 - floor) * step / settings.warmup
        past = step - settings.warmup - stable
        if past < 0 or (past == 0 and not settings.decay):
            return 1.0
        if past >= settings.decay:
            return floor
        wave = 0.5 * (1 + math.cos(math.pi * settings.cycles * past / settings.decay))
        return max(0.0, floor + (1 - floor) * wave)

    return multiplier


def piecewise_constant(settings: ScheduleSettings) -> Multiplier:
    """``step_rules=1:100,0.1:200,0.01``: 1 for steps under 100, 0.1 under 200, 0.01 after."""
    text = settings.arguments.get("step_rules")
    rows = [str(row) for row in text] if isinstance(text, tuple) else str(text or "").split(",")
    try:
        rules = [(float(value), int(until)) for value, until in (row.split(":") for row in rows[:-1])]
        last = float(rows[-1])
    except ValueError:
        raise ConfigError(
            "lr_scheduler_args: piecewise_constant needs step_rules=1:100,0.1:200,0.01 (factor:until step, last factor)"
        ) from None
    if any(a[1] >= b[1] for a, b in pairwise(rules)):
        raise ConfigError("lr_scheduler_args: the steps of step_rules must rise")
    return lambda step: next((value for value, until in rules if step < until), last)


def adafactor(_: ScheduleSettings) -> Multiplier:
    """Adafactor's own rate min(1e-2, 1/√t), to be shown; it is times the size of each tensor besides."""
    return lambda step: float(min(1e-2, 1 / math.sqrt(step + 1)))


KINDS = {
    "inverse_sqrt": ScheduleKind(make=inverse_sqrt, reads=(TIMESCALE,)),
    "warmup_stable_decay": ScheduleKind(make=warmup_stable_decay, reads=(CYCLES, FLOOR, DECAY)),
    "piecewise_constant": ScheduleKind(
        make=piecewise_constant, arguments={"step_rules": None}, warms_up=False, warmup=0.0
    ),
    "adafactor": ScheduleKind(make=adafactor, warms_up=False, warmup=0.0),
}
