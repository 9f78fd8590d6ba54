"""Learning-rate schedules as pure functions of the step, so that resuming needs no state.

A schedule is a multiplier λ(t) of every group's own rate; ``t`` counts finished optimizer steps from 0, ``N`` is
the run's total and ``W`` its warm-up. All but ``constant`` begin with λ = t / W for t < W (the first step has rate
0, as everywhere in the field). Formulas: transformers' and diffusers' ``optimization`` modules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lorapipe_engine.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """``total`` and ``warmup`` in optimizer steps; ``cycles`` for the cosine kinds; ``power`` and the rate ``base``
    for polynomial, which ends at 1e-7; ``min_ratio``: floor of cosine_with_min_lr as a share of the rate."""

    name: str
    total: int
    warmup: int = 0
    cycles: float = 1.0
    power: float = 1.0
    base: float = 1.0
    min_ratio: float = 0.0


Curve = Callable[[float, ScheduleSettings], float]


def _linear(p: float, _: ScheduleSettings) -> float:
    return 1 - p


def _cosine(p: float, _: ScheduleSettings) -> float:
    return 0.5 * (1 + math.cos(math.pi * p))


def _restarts(p: float, s: ScheduleSettings) -> float:
    # n cycles are n - 1 restarts; each jumps back to the full rate in one step.
    return 0.0 if p >= 1 else 0.5 * (1 + math.cos(math.pi * ((s.cycles * p) % 1.0)))


def _polynomial(p: float, s: ScheduleSettings) -> float:
    # A power under 1 keeps the rate higher for longer.
    end = 1e-7 / s.base
    return float((1 - end) * (1 - p) ** s.power + end)


def _cosine_min(p: float, s: ScheduleSettings) -> float:
    return s.min_ratio + (1 - s.min_ratio) * 0.5 * (1 + math.cos(math.pi * p))


CURVES: dict[str, Curve] = {
    "constant": lambda _p, _s: 1.0,
    "constant_with_warmup": lambda _p, _s: 1.0,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _restarts,
    "polynomial": _polynomial,
    "cosine_with_min_lr": _cosine_min,
}


def rate_multiplier(settings: ScheduleSettings) -> Callable[[int], float]:
    """The function λ(t), for t from 0 to total - 1.

    Raises ConfigError for an unknown name, a warm-up on ``constant`` or one that is as long as the run.
    """
    curve = CURVES.get(settings.name)
    if curve is None:
        raise ConfigError(f"lr_scheduler: '{settings.name}' is unknown; one of {', '.join(CURVES)}")
    if settings.name == "constant" and settings.warmup:
        raise ConfigError("lr_warmup_steps: 'constant' has no warm-up; use lr_scheduler constant_with_warmup")
    if settings.warmup and settings.warmup >= settings.total:
        raise ConfigError(
            f"lr_warmup_steps: {settings.warmup} is as long as the run of {settings.total} steps"
        )

    def multiplier(step: int) -> float:
        if step < settings.warmup:
            return step / settings.warmup
        progress = (step - settings.warmup) / max(1, settings.total - settings.warmup)
        return curve(min(progress, 1.0), settings)

    return multiplier


def warmup_steps(value: float, total: int) -> int:
    """Warm-up in steps, from a count or, below 1, a share of the run."""
    return int(value * total) if value < 1 else int(value)
