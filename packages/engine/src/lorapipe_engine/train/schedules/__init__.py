"""Learning-rate schedules as pure functions of the step, so that resuming needs no state.

A schedule is a multiplier λ(t) of every group's own rate; ``t`` counts finished optimizer steps from 0, ``N`` is
the run's total and ``W`` its warm-up. Those that warm up begin with λ = t / W for t < W (the first step has rate 0,
as everywhere in the field). Formulas: transformers' and diffusers' ``optimization`` modules.
"""

from lorapipe_engine.train.schedules.kinds import ScheduleKind, ScheduleSettings, warmup_steps
from lorapipe_engine.train.schedules.registry import (
    CURVES,
    is_built_in,
    length_notes,
    rate_multiplier,
    rate_plan,
    schedule_notes,
    schedule_of,
)

__all__ = [
    "CURVES",
    "ScheduleKind",
    "ScheduleSettings",
    "is_built_in",
    "length_notes",
    "rate_multiplier",
    "rate_plan",
    "schedule_notes",
    "schedule_of",
    "warmup_steps",
]
