"""Optimizers by the field's names, their arguments checked before anything is loaded.

A new one is a row here: its class, how its arguments are named, its usual learning rate.
"""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from lorapipe_engine.errors import ConfigError, MissingExtra
from lorapipe_engine.nn.flat import FlatGroup


@dataclass(frozen=True, kw_only=True)
class OptimizerKind:
    """``path``: module:Class; ``rate``: usual learning rate of the UNet; ``defaults``: arguments unless given."""

    path: str
    rate: float
    defaults: Mapping[str, Any] = field(default_factory=dict)
    install: str = "pip install 'lorapipe-engine[train]'"

    def load(self) -> type[torch.optim.Optimizer]:
        """Import the class. Raises MissingExtra with the pip command."""
        module, name = self.path.split(":")
        try:
            found: type[torch.optim.Optimizer] = getattr(import_module(module), name)
        except ImportError as error:
            raise MissingExtra(
                f"the optimizer {name} needs a package that is not installed: {self.install}"
            ) from error
        return found


KINDS: dict[str, OptimizerKind] = {
    "adamw": OptimizerKind(path="torch.optim:AdamW", rate=1e-4, defaults={"weight_decay": 0.01}),
    "sgdnesterov": OptimizerKind(
        path="torch.optim:SGD", rate=1e-2, defaults={"momentum": 0.9, "nesterov": True}
    ),
}


def optimizer_kind(name: str) -> OptimizerKind:
    """Look an optimizer up, ignoring case. Raises ConfigError naming the nearest known one."""
    kind = KINDS.get(name.lower())
    if kind is None:
        near = difflib.get_close_matches(name.lower(), KINDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(KINDS)}"
        raise ConfigError(f"optimizer_type: '{name}' is unknown; {hint}")
    return kind


def parse_arguments(pairs: Sequence[str], option: str = "optimizer_args") -> dict[str, Any]:
    """``k=v`` pairs with Python literals; ``betas=0.9,0.99`` is a tuple, anything that is no literal a string."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key.isidentifier():
            raise ConfigError(f"{option}: '{pair}' is not of the form name=value")
        try:
            found[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[key] = text
    return found


def check_arguments(name: str, pairs: Sequence[str]) -> dict[str, Any]:
    """The arguments for an optimizer, defaults included. Raises ConfigError for one that it does not take."""
    kind = optimizer_kind(name)
    given = parse_arguments(pairs)
    known = [p for p in inspect.signature(kind.load()).parameters if p not in ("params", "lr")]
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(known)}"
            raise ConfigError(f"optimizer_args: {name} has no argument '{key}'; {hint}")
    return {**kind.defaults, **given}


@dataclass(frozen=True)
class Rates:
    """Learning rates by part ("unet", "te1", "te2"); a part without one is not trained."""

    by_part: Mapping[str, float]


def build_optimizer(
    name: str, arguments: Mapping[str, Any], groups: Mapping[str, FlatGroup], rates: Rates
) -> torch.optim.Optimizer:
    """One parameter group a part, on its flat buffer, with the rate as a tensor so that a graph can read it.

    Groups carry ``part`` and ``base_rate`` beside torch's own keys.
    """
    kind = optimizer_kind(name)
    rows = []
    for part, group in groups.items():
        rate = rates.by_part.get(part, 0.0)
        if rate > 0:
            rows.append({"params": [group.parameter], "lr": rate, "part": part, "base_rate": rate})
    if not rows:
        raise ConfigError("learning_rate: every part has rate 0, so nothing would be trained")
    extra = {"fused": True} if kind.path == "torch.optim:AdamW" and _fused_works(groups) else {}
    try:
        optimizer = kind.load()(rows, **{**extra, **arguments})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer_args: {name}: {error}") from error
    for row in optimizer.param_groups:
        if extra:
            row["lr"] = torch.tensor(float(row["base_rate"]), device=row["params"][0].device)
    return optimizer


def _fused_works(groups: Mapping[str, FlatGroup]) -> bool:
    return all(group.parameter.device.type in ("cuda", "cpu", "mps") for group in groups.values())


def set_rates(optimizer: torch.optim.Optimizer, multiplier: float) -> None:
    """Give every group ``base_rate * multiplier``, in place where the rate is a tensor."""
    for row in optimizer.param_groups:
        rate = row["base_rate"] * multiplier
        if isinstance(row["lr"], Tensor):
            row["lr"].fill_(rate)
        else:
            row["lr"] = rate
