"""How a network is updated over a run: optimizer, rates and their curve, worked out from the options in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorapipe_engine.settings import OptimizerSettings
from lorapipe_engine.train.optimizers import (
    OptimizerKind,
    Rates,
    check_arguments,
    optimizer_kind,
    parse_arguments,
    rates_of,
    sets_own_rate,
)
from lorapipe_engine.train.schedules.kinds import ScheduleSettings
from lorapipe_engine.train.schedules.registry import rate_plan, schedule_of


@dataclass(frozen=True)
class UpdatePlan:
    """The optimizer with its ``arguments``, the ``rates`` by part, and their ``schedule`` over the run."""

    kind: OptimizerKind
    arguments: Mapping[str, Any]
    rates: Rates
    schedule: ScheduleSettings

    @property
    def sets_own_rate(self) -> bool:
        """Whether the optimizer decides its rate by itself."""
        return sets_own_rate(self.kind, self.arguments)

    def rates_at(self, base_rates: Sequence[float]) -> Callable[[int], list[float]]:
        """The rates of groups at a step, from the rates that they have at the schedule's top."""
        return rate_plan(self.schedule, list(base_rates))


def plan_updates(
    optimizer: OptimizerSettings, parts: tuple[str, ...], steps: int, *, try_out: bool = True
) -> UpdatePlan:
    """The plan for a model of ``parts`` that may be trained, over ``steps`` optimizer steps.

    ``try_out`` False only parses the optimizer's arguments, and needs no torch: enough for the rates alone.
    Raises ConfigError for options that contradict each other, or that the optimizer or the model cannot take.
    """
    kind = optimizer_kind(optimizer.optimizer_type)
    if try_out:
        arguments = check_arguments(optimizer.optimizer_type, optimizer.optimizer_args)
    else:
        arguments = parse_arguments(optimizer.optimizer_args)
    rates = rates_of(optimizer, parts)
    schedule = schedule_of(optimizer, steps, max(rates.by_part.values()))
    return UpdatePlan(kind, arguments, rates, schedule)
