"""Optimizers by the field's names, their arguments and rates checked before anything is loaded."""

from lorapipe_engine.train.optimizers.arguments import (
    arguments_text,
    check_arguments,
    checked,
    parse_arguments,
    sets_own_rate,
)
from lorapipe_engine.train.optimizers.build import (
    build_optimizer,
    evaluating,
    gradients_of,
    rates_in_force,
    set_rates,
    write_rates,
)
from lorapipe_engine.train.optimizers.kinds import OptimizerKind
from lorapipe_engine.train.optimizers.rates import Rates, alpha_note, check_group_rates, rate_notes, rates_of
from lorapipe_engine.train.optimizers.registry import KINDS, known_names, optimizer_kind

__all__ = [
    "KINDS",
    "OptimizerKind",
    "Rates",
    "alpha_note",
    "arguments_text",
    "build_optimizer",
    "check_arguments",
    "check_group_rates",
    "checked",
    "evaluating",
    "gradients_of",
    "known_names",
    "optimizer_kind",
    "parse_arguments",
    "rate_notes",
    "rates_in_force",
    "rates_of",
    "set_rates",
    "sets_own_rate",
    "write_rates",
]
