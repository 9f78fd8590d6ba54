"""Warm restarts with decay: cosine cycles, each with a ramp of its own, under a falling peak.

``cosine_warm_restarts`` is the schedule that guides recommend for styles, as a pure function of the step. With
W warm-up, L cycle length, w ramp of the later cycles, f floor, δ decay a restart and γ decay a step:

    t < W:  λ = (t + 1) / W
    else    u = t - W; cycle c, position v in it; w_0 = 0, else w
            g = v / w_c                                while v < w_c
                ½(1 + cos(π(v - w_c) / (L_c - w_c)))   after
            λ = γ^u · δ^c · (f + (1 - f) · g)

``cosine_annealing_warmup_restarts`` is the widespread class of that name (first_cycle_steps, cycle_mult, max_lr,
min_lr, warmup_steps, gamma), in which every cycle ramps up and the floor does not fall.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.train.schedules.kinds import CYCLES, Multiplier, ScheduleKind, ScheduleSettings

CLASS = "CosineAnnealingWarmupRestarts"
WARM: dict[str, Any] = {
    "cycles": None,
    "T_0": None,
    "T_mult": 1.0,
    "cycle_warmup": 0.0,
    "warmup_steps": None,
    "decay": 1.0,
    "down_factor": 0.0,
    "gamma_min_lr": 1.0,
    "half_life": None,
    "min_lr": 0.0,
    "init_lr_ground": False,
}
CLASSIC: dict[str, Any] = {
    "first_cycle_steps": None,
    "cycle_mult": 1.0,
    "max_lr": None,
    "min_lr": 0.0,
    "warmup_steps": 0.0,
    "gamma": 1.0,
}
REX: dict[str, Any] = {
    "first_cycle_steps": None,
    "cycle_mult": 1.0,
    "warmup_steps": None,
    "gamma": 1.0,
    "min_lr": 0.0,
    "d": 0.9,
}


def cosine_warm_restarts(settings: ScheduleSettings) -> Multiplier:
    """The formula at the top. ``T_0`` is L (or ``cycles`` in the run, from num_cycles), ``T_mult`` its growth,
    ``cycle_warmup`` w, ``down_factor`` f, ``decay`` δ, ``gamma_min_lr`` γ (or ``half_life`` of the peak in steps);
    ``min_lr`` is a rate that the curve does not go below after the warm-up. With ``init_lr_ground`` the warm-up is
    t / W, whose first step has rate 0.
    """
    given = {**WARM, **settings.arguments}
    warmup = (
        settings.warmup if given["warmup_steps"] is None else _count("warmup_steps", given["warmup_steps"])
    )
    ramp, growth = _count("cycle_warmup", given["cycle_warmup"]), _positive("T_mult", given["T_mult"])
    length = _first_length(given, settings, warmup, ramp, growth)
    gamma = _gamma(given)
    decay, down = _share("decay", given["decay"]), _share("down_factor", given["down_factor"])
    floor = _number("min_lr", given["min_lr"]) / settings.base
    first = 0 if _truth("init_lr_ground", given["init_lr_ground"]) else 1

    def multiplier(step: int) -> float:
        if step < warmup:
            return (step + first) / warmup
        if step == 0 and not first:
            return 0.0
        past = step - warmup
        cycle, position, size = locate(past, length, ramp, growth)
        rise = ramp if cycle else 0.0
        shape = down + (1 - down) * _wave(position, rise, size)
        return max(gamma**past * decay**cycle * shape, floor)

    return multiplier


def cosine_annealing_warmup_restarts(settings: ScheduleSettings) -> Multiplier:
    """λ = f + (peak · gamma^c - f) · g, every cycle ramping up over ``warmup_steps``. ``max_lr`` and ``min_lr`` are
    rates of the part with the highest one; the others keep their share of it. Without max_lr the peak is the rate.
    """
    given = {**CLASSIC, **settings.arguments}
    if given["first_cycle_steps"] is None:
        raise ConfigError(
            "lr_scheduler_args: first_cycle_steps= is needed, the length of the first cycle in steps"
        )
    length = _positive("first_cycle_steps", given["first_cycle_steps"])
    ramp, growth = _count("warmup_steps", given["warmup_steps"]), _positive("cycle_mult", given["cycle_mult"])
    _check_ramp("warmup_steps", ramp, length)
    peak = 1.0 if given["max_lr"] is None else _positive("max_lr", given["max_lr"]) / settings.base
    floor, gamma = _number("min_lr", given["min_lr"]) / settings.base, _positive("gamma", given["gamma"])

    def multiplier(step: int) -> float:
        cycle, position, size = locate(step, length, ramp, growth)
        return float(floor + (peak * gamma**cycle - floor) * _wave(position, ramp, size))

    return multiplier


def rex_annealing_warm_restarts(settings: ScheduleSettings) -> Multiplier:
    """λ = γ^c · (f + (1 - f) · (1 - p) / ((1 - d) + d(1 - p))) over the progress p of each cycle c, which begins with a
    ramp of ``warmup_steps`` (the run's warm-up, where it is not given). ``min_lr`` is the floor of the highest rate.
    Formula of the curve: Chen et al. 2021.
    """
    given = {**REX, **settings.arguments}
    length = (
        float(max(1, settings.total))
        if given["first_cycle_steps"] is None
        else _positive("first_cycle_steps", given["first_cycle_steps"])
    )
    own = given["warmup_steps"]
    ramp = settings.warmup if own is None else _count("warmup_steps", own)
    growth, d = _positive("cycle_mult", given["cycle_mult"]), _share("d", given["d"])
    if d == 1:
        raise ConfigError("lr_scheduler_args: d=1 of rex_annealing_warm_restarts never falls; use constant")
    floor, gamma = _number("min_lr", given["min_lr"]) / settings.base, _positive("gamma", given["gamma"])

    def multiplier(step: int) -> float:
        cycle, position, size = locate(step, length, min(ramp, length - 1), growth)
        if position < ramp:
            shape = position / ramp
        else:
            rest = 1 - (position - ramp) / (size - ramp)
            shape = rest / ((1 - d) + d * rest)
        return float(gamma**cycle * (floor + (1 - floor) * shape))

    return multiplier


def locate(past: float, length: float, ramp: float, growth: float) -> tuple[int, float, float]:
    """The cycle that a step lies in, its position there and the cycle's length. Growth stretches what follows the
    ramp: L_{c+1} = w + ⌊(L_c - w)μ⌋, at least one step more than the ramp.
    """
    if growth == 1:
        cycle = int(past // length)
        return cycle, past - cycle * length, length
    cycle = 0
    while past >= length:
        past -= length
        length = ramp + max(1, math.floor((length - ramp) * growth))
        cycle += 1
    return cycle, past, length


def _wave(position: float, ramp: float, size: float) -> float:
    if position < ramp:
        return position / ramp
    return 0.5 * (1 + math.cos(math.pi * (position - ramp) / (size - ramp)))


def _first_length(
    given: Mapping[str, Any], settings: ScheduleSettings, warmup: int, ramp: int, growth: float
) -> float:
    if given["T_0"] is not None and given["cycles"] is not None:
        raise ConfigError("lr_scheduler_args: give T_0 (steps of a cycle) or cycles (how many), not both")
    if given["T_0"] is not None:
        length = _positive("T_0", given["T_0"])
    else:
        cycles = _positive("cycles", given["cycles"] if given["cycles"] is not None else settings.cycles)
        whole = max(1, round(cycles))
        share = cycles if growth == 1 else sum(growth**index for index in range(whole))
        rest = max(1, settings.total - warmup)
        length = rest / cycles if growth == 1 else ramp + (rest - ramp * whole) / share
    _check_ramp("cycle_warmup", ramp, length)
    return length


def _check_ramp(name: str, ramp: float, length: float) -> None:
    if ramp >= length:
        raise ConfigError(f"lr_scheduler_args: {name}={ramp:g} is as long as a cycle of {length:g} steps")


def _gamma(given: Mapping[str, Any]) -> float:
    if given["half_life"] is not None:
        return float(2 ** (-1 / _positive("half_life", given["half_life"])))
    return _share("gamma_min_lr", _positive("gamma_min_lr", given["gamma_min_lr"]))


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"lr_scheduler_args: {name} takes a number, not '{value}'")
    return float(value)


def _truth(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"lr_scheduler_args: {name} takes True or False, not '{value}'")
    return value


def check_guides(arguments: Mapping[str, Any]) -> None:
    """Raise ConfigError where :func:`cosine_warm_restarts` is not the curve of the class that guides install.

    Its ramp after a restart goes from the floor to twice the floor, and jumps to the peak from there, which is a ramp
    to the peak for a floor of a half alone; and it stretches the ramp with the cycle.
    """
    ramp = arguments.get("cycle_warmup", 0)
    if not ramp:
        return
    for name, same, known in (("down_factor", 0.5, 0.0), ("T_mult", 1, 1)):
        value = arguments.get(name, known)
        if value != same:
            raise ConfigError(
                f"lr_scheduler_args: with cycle_warmup={ramp} and {name}={value} the class {CLASS} has a curve with "
                f"jumps, which is not built in; give {name}={same}, or --lr_scheduler cosine_warm_restarts, whose "
                "ramps end at the peak"
            )


def _count(name: str, value: Any) -> int:
    number = _number(name, value)
    if number < 0 or number != int(number):
        raise ConfigError(f"lr_scheduler_args: {name}={value} is not a count of steps")
    return int(number)


def _positive(name: str, value: Any) -> float:
    number = _number(name, value)
    if number <= 0:
        raise ConfigError(f"lr_scheduler_args: {name}={value} must be above 0")
    return number


def _share(name: str, value: Any) -> float:
    number = _number(name, value)
    if not 0 <= number <= 1:
        raise ConfigError(f"lr_scheduler_args: {name}={value} is not in 0..1")
    return number


KINDS = {
    "rex_annealing_warm_restarts": ScheduleKind(make=rex_annealing_warm_restarts, arguments=REX, warmup=0.0),
    "cosine_warm_restarts": ScheduleKind(make=cosine_warm_restarts, arguments=WARM, reads=(CYCLES,)),
    "cosine_annealing_warmup_restarts": ScheduleKind(
        make=cosine_annealing_warmup_restarts, arguments=CLASSIC, warms_up=False, warmup=0.0
    ),
}
