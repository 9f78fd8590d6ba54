"""Schedules of other packages, by class: run once ahead of time, then a table by step.

A table makes them what the built-in ones are, a pure function of the step, so that resuming needs no state.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.train.optimizers.arguments import checked
from lorapipe_engine.train.optimizers.registry import not_importable
from lorapipe_engine.train.schedules.kinds import ScheduleSettings


def tabulate(settings: ScheduleSettings, bases: Sequence[float]) -> Callable[[int], list[float]]:
    """The rates of groups with the rates ``bases``, by step, as the class named in ``settings`` sets them.

    Raises ConfigError for a class that is none, for arguments that it does not take or take well; MissingExtra for
    a package that is not installed.
    """
    if settings.warmup:
        raise ConfigError(
            f"lr_warmup_steps: {settings.name} makes its own warm-up, if it has one; leave this out"
        )
    scheduler = _load(settings.name)
    arguments = _check(settings.name, scheduler, dict(settings.arguments))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            rows = _run(scheduler, arguments, bases, settings.total)
        except Exception as error:  # the class is not ours, so neither are its errors
            raise ConfigError(f"lr_scheduler_type: {settings.name}: {error}") from error
    return lambda step: rows[min(step, len(rows) - 1)]


def _run(scheduler: Any, arguments: dict[str, Any], bases: Sequence[float], total: int) -> list[list[float]]:
    import torch

    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": base} for base in bases]
    optimizer = torch.optim.SGD(groups, lr=bases[0])
    schedule = scheduler(optimizer, **arguments)
    rows = []
    for _ in range(total):
        rows.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return rows


def _load(name: str) -> Any:
    module, _, attribute = name.replace(":", ".").rpartition(".")
    module = module or "torch.optim.lr_scheduler"
    try:
        scheduler = getattr(import_module(module), attribute)
    except ImportError as error:
        raise not_importable("lr_scheduler_type", name, module, error) from error
    except AttributeError as error:
        near = difflib.get_close_matches(attribute, dir(import_module(module)), 1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise ConfigError(f"lr_scheduler_type: {module} has no class '{attribute}'{hint}") from error
    if attribute == "ReduceLROnPlateau":
        raise ConfigError(
            "lr_scheduler_type: ReduceLROnPlateau follows the loss, which at random timesteps tells nothing; "
            "use cosine, or cosine_warm_restarts"
        )
    if not isinstance(scheduler, type) or not callable(getattr(scheduler, "step", None)):
        raise ConfigError(f"lr_scheduler_type: {name} is not a scheduler class")
    return scheduler


def _check(name: str, scheduler: Any, given: dict[str, Any]) -> dict[str, Any]:
    rows = list(inspect.signature(scheduler).parameters.values())[1:]
    known = {row.name: row for row in rows if row.kind not in (row.VAR_KEYWORD, row.VAR_POSITIONAL)}
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
            raise ConfigError(f"lr_scheduler_args: {name} has no argument '{key}'; {hint}")
        default = known[key].default
        if default is not inspect.Parameter.empty and default is not None:
            given[key] = checked(f"lr_scheduler_args: {name}: {key}", default, given[key])
    missing = [row.name for row in known.values() if row.default is row.empty and row.name not in given]
    if missing:
        raise ConfigError(f"lr_scheduler_args: {name} needs {', '.join(f'{key}=' for key in missing)}")
    if "cycle_momentum" in known and given.setdefault("cycle_momentum", False):
        raise ConfigError(
            "lr_scheduler_args: cycle_momentum is not supported; only rates follow the schedule"
        )
    return given
