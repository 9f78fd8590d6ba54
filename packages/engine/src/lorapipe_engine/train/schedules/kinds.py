"""What a schedule is made from, and what is known of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lorapipe_engine.errors import ConfigError

Multiplier = Callable[[int], float]
CYCLES, POWER, TIMESCALE = "lr_scheduler_num_cycles", "lr_scheduler_power", "lr_scheduler_timescale"
FLOOR, DECAY = "lr_scheduler_min_lr_ratio", "lr_decay_steps"
# Options that not every curve reads.
OF_SOME = (CYCLES, POWER, TIMESCALE, FLOOR, DECAY)


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The options of a curve.

    ``name``: one of the built-in curves, or a class (``torch.optim.lr_scheduler``'s, or module.Class). ``total``,
    ``warmup`` and ``decay`` (warmup_stable_decay's last part) are optimizer steps, ``timescale`` too (None: the
    warm-up). ``cycles`` is for the cosine kinds, ``power`` for polynomial, which ends at 1e-7 for the rate ``base``;
    ``min_ratio`` is the floor as a share of the rate. ``arguments`` are lr_scheduler_args, parsed.
    """

    name: str
    total: int
    warmup: int = 0
    cycles: float = 1.0
    power: float = 1.0
    base: float = 1.0
    min_ratio: float = 0.0
    timescale: int | None = None
    decay: int = 0
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ScheduleKind:
    """``make`` gives λ(t); ``arguments``: names and defaults of the lr_scheduler_args that it takes; ``warms_up``:
    whether it can begin with a warm-up; ``warmup``: the share of the run that this takes by default; ``reads``: those
    of :data:`OF_SOME` that it reads."""

    make: Callable[[ScheduleSettings], Multiplier]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    warms_up: bool = True
    warmup: float = 0.05
    reads: tuple[str, ...] = ()


def warmup_steps(value: float | str, total: int, option: str = "lr_warmup_steps") -> int:
    """Steps, from a count, a share of the run below 1, or a percentage as ``10%``. Raises ConfigError for others."""
    text = str(value).strip()
    try:
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        number = -1.0
    whole = number == int(number) if abs(number) < 1e12 else False
    share = text.endswith("%") or 0 <= number < 1
    if number < 0 or (share and number > 1) or not (share or whole):
        raise ConfigError(f"{option}: '{text}' is neither a count of steps nor a share as 0.05 or 5%")
    return int(number * total) if share else int(number)


def with_warmup(settings: ScheduleSettings, after: Callable[[float], float]) -> Multiplier:
    """λ(t) = t / W for t < W, then ``after`` of the progress p = (t - W) / (N - W), from 0 to 1."""
    warmup, rest = settings.warmup, max(1, settings.total - settings.warmup)

    def multiplier(step: int) -> float:
        if step < warmup:
            return step / warmup
        return after(min((step - warmup) / rest, 1.0))

    return multiplier
