"""What a run is about to do, in a few lines."""

from __future__ import annotations

from lorapipe_engine.command.text import counted
from lorapipe_engine.datasets.described import folder_lines
from lorapipe_engine.datasets.scan import Dataset
from lorapipe_engine.networks.algorithms import Algorithm, asked_algorithm
from lorapipe_engine.nn.attach import Network
from lorapipe_engine.settings import NetworkSettings, TrainSettings
from lorapipe_engine.train.optimizers import alpha_note
from lorapipe_engine.train.plan import RunPlan
from lorapipe_engine.train.schedules.updates import UpdatePlan


def summary(
    settings: TrainSettings, plan: RunPlan, dataset: Dataset, network: Network, processes: int = 1
) -> list[str]:
    """Pictures, length, network, and how it is updated."""
    accumulation = settings.optimizer.gradient_accumulation_steps
    together = f" x {processes} processes" if processes > 1 else ""
    together += f" x {accumulation}" if accumulation > 1 else ""
    sizes = ", ".join(map(str, dict.fromkeys(dataset.batch_sizes)))
    length = plan.length
    row = "picture" if dataset.pairs is None else "row of prompts"
    asked = _asked(settings.network)
    rank = settings.network.network_dim
    what = asked.title if asked is not None and (rank is None or not asked.has_rank) else f"rank {rank}"
    return [
        *folder_lines(dataset),
        f"{_counted(sum(dataset.repeats), row)} an epoch in {_counted(len(set(dataset.buckets)), 'bucket')}, "
        f"batch {sizes}{together}: {_counted(length.steps_per_epoch, 'step')} an epoch, {length.in_words()}",
        f"network of {what}: {len(network.adapters)} modules, {network.count():,} values",
        *_updates(plan.updates, settings.network),
    ]


def _asked(network: NetworkSettings) -> Algorithm | None:
    return asked_algorithm(network.algorithm, network.network_module, network.network_args)


def _counted(number: int, noun: str) -> str:
    first, _, rest = noun.partition(" ")
    return f"{number} {first}{'' if number == 1 else 's'}{rest and ' ' + rest}"


def _updates(plan: UpdatePlan, network: NetworkSettings) -> list[str]:
    """How the network is going to be updated, in a line, and what is odd about that."""
    shown = ", ".join(f"{part} {rate:g}" for part, rate in plan.rates.by_part.items())
    if plan.sets_own_rate:
        shown = "its own"
    text = ", ".join(f"{name}={value}" for name, value in plan.arguments.items())
    schedule = plan.schedule
    curve = schedule.name
    if schedule.warmup:
        curve += f" after {counted(schedule.warmup, 'step')} of warm-up"
    asked, note = _asked(network), None
    if asked is not None and asked.scaled:
        note = alpha_note(plan.kind, network.network_alpha or 0.0, network.network_dim or 0)
    return [f"{plan.kind.name}({text}); rates: {shown}; {curve}", *([f"note: {note}"] if note else [])]
