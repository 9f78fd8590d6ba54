"""Schedules by name. A new one is a function in a file beside this one, and its row there."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings import OptimizerSettings
from lorapipe_engine.train.optimizers.arguments import checked, parse_arguments, sets_own_rate
from lorapipe_engine.train.optimizers.registry import EASY_PACKAGE, optimizer_kind
from lorapipe_engine.train.schedules import curves, restarts, stages
from lorapipe_engine.train.schedules.classes import tabulate
from lorapipe_engine.train.schedules.kinds import (
    CYCLES,
    OF_SOME,
    Multiplier,
    ScheduleKind,
    ScheduleSettings,
    warmup_steps,
)

CURVES: dict[str, ScheduleKind] = {**curves.KINDS, **stages.KINDS, **restarts.KINDS}

# The class that guides install for warm restarts, and its two sets of arguments, are built in.
_RESTARTS = restarts.CLASS
_REFUSED = {
    "reduce_lr_on_plateau": "follows the loss, which at random timesteps tells nothing",
    "greedy": "follows the loss, which at random timesteps tells nothing",
    "cosine_warmup_with_min_lr": "is not built in; cosine_with_min_lr with lr_warmup_steps comes closest",
}


def rate_multiplier(settings: ScheduleSettings) -> Multiplier:
    """The function λ(t) of a built-in schedule, for t from 0 to total - 1.

    A warm-up that is as long as the run or longer is all of it, and does not get to its end. Raises ConfigError for an
    unknown name, arguments that it does not take, or a warm-up on a curve without one.
    """
    kind = _kind(settings.name)
    _check_arguments(settings, kind)
    if settings.warmup and not kind.warms_up:
        raise ConfigError(f"lr_warmup_steps: '{settings.name}' has no warm-up; leave it out")
    return kind.make(settings)


def rate_plan(settings: ScheduleSettings, bases: Sequence[float]) -> Callable[[int], list[float]]:
    """The rates of groups whose own rates are ``bases``, by step: of a built-in curve or of a class."""
    if not is_built_in(settings.name):
        return tabulate(settings, bases)
    multiplier = rate_multiplier(settings)

    def rates(step: int) -> list[float]:
        factor = multiplier(step)
        return [base * factor for base in bases]

    return rates


def is_built_in(name: str) -> bool:
    """Whether a name of ScheduleSettings means a built-in curve (a class has a dot or a capital letter)."""
    return name == name.lower() and "." not in name


def _kind(name: str) -> ScheduleKind:
    kind = CURVES.get(name)
    if kind is None:
        if name in _REFUSED:
            raise ConfigError(f"lr_scheduler: {name} {_REFUSED[name]}")
        near = difflib.get_close_matches(name, CURVES, 1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(CURVES)}"
        raise ConfigError(f"lr_scheduler: '{name}' is unknown; {hint} (classes go in lr_scheduler_type)")
    return kind


def _check_arguments(settings: ScheduleSettings, kind: ScheduleKind) -> None:
    for key, value in settings.arguments.items():
        if key not in kind.arguments:
            near = difflib.get_close_matches(key, kind.arguments, 1)
            takes = f"it takes {', '.join(kind.arguments)}" if kind.arguments else "it takes none"
            hint = f"did you mean {near[0]}?" if near else takes
            raise ConfigError(f"lr_scheduler_args: {settings.name} has no argument '{key}'; {hint}")
        if kind.arguments[key] is not None:
            checked(f"lr_scheduler_args: {settings.name}: {key}", kind.arguments[key], value)


def schedule_of(optimizer: OptimizerSettings, total: int, base_rate: float) -> ScheduleSettings:
    """The curve of the rate over ``total`` optimizer steps, for a highest rate of ``base_rate``.

    Without lr_scheduler it is what suits the optimizer. Raises ConfigError for options that contradict each other.
    """
    arguments = parse_arguments(optimizer.lr_scheduler_args, "lr_scheduler_args")
    name = _name(optimizer, set(arguments))
    is_easy = name in _OF_EASY_SCRIPTS.values() and _asked(optimizer).partition(".")[0] == EASY_PACKAGE
    if name in _OF_EASY_SCRIPTS.values():
        arguments = {_EASY_ARGUMENTS.get(key, key): value for key, value in arguments.items()}
    if is_easy:
        arguments = {**_easy_lengths(optimizer, total), **arguments}
    kind = _kind(name) if is_built_in(name) else None
    if name == "cosine_warm_restarts" and _names_class(optimizer):
        restarts.check_guides(arguments)
    warmup = optimizer.lr_warmup_steps
    passed_over = name == "constant" and warmup is not None
    if passed_over:
        warmup_steps(str(warmup), total)  # what is no count is refused all the same
    if warmup is None or passed_over or is_easy or _overruled(optimizer):
        warmup = str(kind.warmup if kind and arguments.get("warmup_steps") is None else 0)
    return ScheduleSettings(
        name=name,
        total=total,
        warmup=warmup_steps(warmup, total),
        cycles=optimizer.lr_scheduler_num_cycles,
        power=optimizer.lr_scheduler_power,
        base=base_rate,
        min_ratio=optimizer.lr_scheduler_min_lr_ratio or 0.0,
        timescale=optimizer.lr_scheduler_timescale,
        decay=warmup_steps(optimizer.lr_decay_steps, total, "lr_decay_steps"),
        arguments={} if _overruled(optimizer) else arguments,
    )


def length_notes(schedule: ScheduleSettings) -> list[str]:
    """What the user should know of a curve over the length of its run; most often nothing."""
    if not schedule.warmup or schedule.warmup < schedule.total:
        return []
    reached = (schedule.total - 1) / schedule.warmup
    return [
        f"lr_warmup_steps {schedule.warmup} is as long as the run of {schedule.total} steps or longer: the rate only "
        f"rises, to {reached:.0%} of what it is to be"
    ]


def schedule_notes(optimizer: OptimizerSettings) -> list[str]:
    """What the user should know of the curve before the run; most often nothing."""
    return [*_passed_over(optimizer), *_unread(optimizer)]


def _unread(optimizer: OptimizerSettings) -> list[str]:
    """Options of other curves than the run's, with the curves that read them."""
    name = _name(optimizer, set(parse_arguments(optimizer.lr_scheduler_args, "lr_scheduler_args")))
    reads = CURVES[name].reads if name in CURVES else ()
    if _asked(optimizer).partition(".")[0] == EASY_PACKAGE:
        reads = (CYCLES,)
    notes = []
    for option in OF_SOME:
        given = str(getattr(optimizer, option))
        if option not in reads and given not in (
            "None",
            "0",
            "0.0",
            str(getattr(OptimizerSettings(), option)),
        ):
            readers = ", ".join(curve for curve, kind in CURVES.items() if option in kind.reads)
            notes.append(f"{option} {given} does nothing with lr_scheduler {name}, only with {readers}")
    return notes


def _passed_over(optimizer: OptimizerSettings) -> list[str]:
    """A warm-up or a whole curve that is not used."""
    warmup = optimizer.lr_warmup_steps
    if optimizer.lr_scheduler == "constant" and not optimizer.lr_scheduler_type and not _overruled(optimizer):
        if warmup and warmup_steps(warmup, 10_000):
            return [
                f"lr_warmup_steps {warmup} is passed over: lr_scheduler constant has no warm-up; "
                "constant_with_warmup has one"
            ]
        return []
    asked = optimizer.lr_scheduler_type or optimizer.lr_scheduler
    name = _overruled(optimizer)
    if not name or not asked or asked.partition(":")[0] == name:
        return []
    kind = optimizer_kind(optimizer.optimizer_type)
    return [f"lr_scheduler {asked} is not used: {kind.name} brings its own curve"]


def _overruled(optimizer: OptimizerSettings) -> str | None:
    """The schedule that the optimizer itself decides, whatever was asked for, or None."""
    kind = optimizer_kind(optimizer.optimizer_type)
    if sets_own_rate(kind, parse_arguments(optimizer.optimizer_args)):
        return "adafactor"
    return "constant" if kind.averaged else None


def _name(optimizer: OptimizerSettings, arguments: set[str]) -> str:
    kind = optimizer_kind(optimizer.optimizer_type)
    overruled = _overruled(optimizer)
    if overruled:
        return overruled
    if optimizer.lr_scheduler_type:
        return _class_name(optimizer.lr_scheduler_type, arguments)
    name = (optimizer.lr_scheduler or kind.schedule).partition(":")[0]
    if name.replace("-", "_") in CURVES:
        name = name.replace("-", "_")
    if name == "adafactor":
        raise ConfigError(
            "lr_scheduler: adafactor goes with --optimizer_type AdaFactor and relative_step=True only; use constant"
        )
    if not is_built_in(name):
        return _class_name(name, arguments)
    return name


# Classes of a GUI for sd-scripts that no package index has -> the built-in that each is.
_OF_EASY_SCRIPTS = {
    "RexAnnealingWarmRestarts": "rex_annealing_warm_restarts",
    "Rex": "rex_annealing_warm_restarts",
    "CosineAnnealingWarmRestarts": "cosine_annealing_warmup_restarts",
    "CosineAnnealingWarmupRestarts": "cosine_annealing_warmup_restarts",
}
# Its names of arguments -> ours.
_EASY_ARGUMENTS = {"first_cycle_max_steps": "first_cycle_steps", "cycle_multiplier": "cycle_mult"}


def _easy_lengths(optimizer: OptimizerSettings, total: int) -> dict[str, int]:
    """What the GUI works out when it starts a run, and its saved files have not: the length of a cycle, and the
    warm-up of each."""
    cycles = max(1, int(optimizer.lr_scheduler_num_cycles))
    return {
        "first_cycle_steps": max(1, total // cycles),
        "warmup_steps": warmup_steps(optimizer.lr_warmup_steps or 0, total) // cycles,
    }


def _asked(optimizer: OptimizerSettings) -> str:
    return optimizer.lr_scheduler_type or optimizer.lr_scheduler or ""


def _names_class(optimizer: OptimizerSettings) -> bool:
    """Whether the curve was asked for by the name of a class."""
    return _asked(optimizer).rpartition(".")[2] == _RESTARTS


def _of_easy_scripts(name: str) -> str | None:
    """The built-in that a class of LoRA_Easy_Training_Scripts is; None for a class of another package."""
    if name.partition(".")[0] != EASY_PACKAGE:
        return None
    known = _OF_EASY_SCRIPTS.get(name.rpartition(".")[2])
    if known is None:
        raise ConfigError(
            f"lr_scheduler_type: {name} is a class of LoRA_Easy_Training_Scripts alone; use lr_scheduler with one of "
            f"{', '.join(CURVES)}"
        )
    return known


def _class_name(name: str, arguments: set[str]) -> str:
    """A class's name, or that of the built-in that stands for it."""
    if easy := _of_easy_scripts(name):
        return easy
    if name.rpartition(".")[2] != _RESTARTS or name.startswith("pytorch_optimizer"):
        return name
    classic = set(restarts.CLASSIC) - set(restarts.WARM)
    return "cosine_annealing_warmup_restarts" if classic & arguments else "cosine_warm_restarts"
