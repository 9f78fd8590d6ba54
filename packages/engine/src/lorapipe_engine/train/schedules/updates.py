"""How a network is updated over a run: optimizer, rates and their curve, worked out from the options in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models.families import is_text
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
from lorapipe_engine.train.schedules.kinds import ScheduleSettings, warmup_steps
from lorapipe_engine.train.schedules.registry import rate_plan, schedule_of


@dataclass(frozen=True)
class UpdatePlan:
    """The optimizer with its ``arguments``, the ``rates`` by part, and their ``schedule`` over the run. From the step
    ``text_stop`` on the text encoders stay as they are; None: they are trained to the end."""

    kind: OptimizerKind
    arguments: Mapping[str, Any]
    rates: Rates
    schedule: ScheduleSettings
    text_stop: int | None = None

    @property
    def sets_own_rate(self) -> bool:
        """Whether the optimizer decides its rate by itself."""
        return sets_own_rate(self.kind, self.arguments)

    def rates_at(
        self, base_rates: Sequence[float], parts: Sequence[str] = ()
    ) -> Callable[[int], list[float]]:
        """The rates of groups at a step, from the rates that they have at the schedule's top and the ``parts`` that
        they belong to."""
        plan = rate_plan(self.schedule, list(base_rates))
        stop = self.text_stop
        if stop is None:
            return plan

        def rates(step: int) -> list[float]:
            if step < stop:
                return plan(step)
            return [0.0 if is_text(part) else rate for part, rate in zip(parts, plan(step), strict=True)]

        return rates


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
    stop = _text_stop(optimizer, steps)
    if stop is not None and (kind.averaged or sets_own_rate(kind, arguments)):
        raise ConfigError(
            f"stop_text_encoder_training: {kind.name} moves values at a rate of 0 too; take AdamW8bit, or leave it out"
        )
    return UpdatePlan(kind, arguments, rates, schedule, stop)


_AT_ONCE = ("0", "-1")


def stops_at_once(optimizer: OptimizerSettings) -> bool:
    """Whether the text encoders are not trained at all, which some programs write as the step at which they stop."""
    return optimizer.stop_text_encoder_training in _AT_ONCE


def _text_stop(optimizer: OptimizerSettings, steps: int) -> int | None:
    stop = optimizer.stop_text_encoder_training
    if stop is None or stop in _AT_ONCE:
        return None
    return warmup_steps(stop, steps, "stop_text_encoder_training")
