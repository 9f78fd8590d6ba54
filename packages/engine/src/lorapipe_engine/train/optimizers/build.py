"""Optimizers on a network's flat buffers, and their rates while they run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.train.optimizers.arguments import sets_own_rate
from lorapipe_engine.train.optimizers.kinds import OptimizerKind
from lorapipe_engine.train.optimizers.rates import Rates
from lorapipe_engine.train.optimizers.registry import optimizer_kind

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from lorapipe_engine.nn.flat import FlatGroup, FlatRange


def build_optimizer(
    name: str, arguments: Mapping[str, Any], groups: Mapping[str, FlatGroup], rates: Rates
) -> Optimizer:
    """One parameter group for each rate group of a part, on its run of the flat buffer, with the rate as a tensor
    where the optimizer reads one, so that a captured graph sees it change.

    Groups carry ``name``, ``part`` and ``base_rate`` beside torch's own keys; those of rate 0 are left out. An
    optimizer that looks at shapes gets the single tensors, which are views of the same buffers. Raises ConfigError for
    arguments that do not fit.
    """
    kind = optimizer_kind(name)
    own_rate = sets_own_rate(kind, arguments)
    rows: list[dict[str, Any]] = []
    for part, group in groups.items():
        for run in group.ranges:
            rate = rates.by_part.get(part, 0.0) * run.group.factor
            if rate > 0:
                row = {"params": _parameters(kind, run), "lr": None if own_rate else rate}
                rows.append({**row, "name": run.group.name, "part": part, "base_rate": rate})
    if not rows:
        raise ConfigError("learning_rate: every part has rate 0, so nothing would be trained")
    on_cuda = kind.on_cuda if rows[0]["params"][0].is_cuda else {}
    settings = {**kind.extra, **on_cuda, **arguments}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = kind.load()(rows, **{"lr": rows[0]["lr"], **settings})
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"optimizer_args: {kind.name}: {error}") from error
    if kind.averaged:
        _train_mode(optimizer)
    if kind.tensor_rate and settings.get("fused"):
        _use_tensor_rates(optimizer)
    return optimizer


def _train_mode(optimizer: Any) -> None:
    optimizer.train()  # some begin in the other mode and refuse to step


def _parameters(kind: OptimizerKind, run: FlatRange) -> list[nn.Parameter]:
    return list(run.parameters) if kind.by_tensor else [run.parameter]


def _use_tensor_rates(optimizer: Optimizer) -> None:
    import torch

    for row in optimizer.param_groups:
        row["lr"] = torch.tensor(float(row["base_rate"]), device=row["params"][0].device)


def set_rates(optimizer: Optimizer, multiplier: float) -> None:
    """Give every group ``base_rate * multiplier``."""
    write_rates(optimizer, [row["base_rate"] * multiplier for row in optimizer.param_groups])


def write_rates(optimizer: Optimizer, rates: Sequence[float]) -> None:
    """Give every group its rate, in place where that is a tensor; groups that set their own stay alone."""
    from torch import Tensor

    for row, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(row["lr"], Tensor):
            row["lr"].fill_(rate)
        elif row["lr"] is not None:
            row["lr"] = rate


def rates_in_force(optimizer: Optimizer) -> dict[str, float]:
    """The numbers to log of the groups' rates: ``lr/NAME``, and ``lr/d*lr/NAME`` where d is estimated.

    Waits for the device where a rate lies there, so it is called once a step at most, outside of the step.
    """
    rates: dict[str, float] = {}
    for row in optimizer.param_groups:
        rate = _own_rate(optimizer, row) if row["lr"] is None else float(row["lr"])
        rates[f"lr/{row['name']}"] = rate
        if "d" in row:
            rates[f"lr/d*lr/{row['name']}"] = float(row["d"]) * rate
    return rates


def _own_rate(optimizer: Optimizer, row: Mapping[str, Any]) -> float:
    """Adafactor's rate of its last step (Shazeer & Stern 2018, section 8), of the group's first tensor."""
    state: dict[str, Any] = optimizer.state.get(row["params"][0], {})
    step = max(1, int(state.get("step", 0)))
    limit = 1e-6 * step if row["warmup_init"] else 1e-2
    scale = max(row["eps"][1], float(state.get("RMS", 0.0))) if row["scale_parameter"] else 1.0
    return float(scale * min(limit, step**-0.5))


@contextmanager
def evaluating(optimizer: Optimizer | None) -> Iterator[None]:
    """The weights that are saved and drawn with: an averaging optimizer trains others in between."""
    change: Any = optimizer if callable(getattr(optimizer, "eval", None)) else None
    if change is None:
        yield
        return
    change.eval()
    try:
        yield
    finally:
        change.train()


def gradients_of(optimizer: Optimizer, groups: Mapping[str, FlatGroup]) -> list[Tensor]:
    """The flat gradient buffers of what the optimizer trains: of whole parts, but for those with untrained groups."""
    trained = {(row["part"], row["name"]) for row in optimizer.param_groups}
    gradients: list[Tensor] = []
    for part, group in groups.items():
        runs = [run for run in group.ranges if (part, run.group.name) in trained]
        if len(runs) == len(group.ranges):
            gradients.append(group.grad)
        else:
            gradients += [group.grad[run.start : run.stop] for run in runs]
    return gradients
