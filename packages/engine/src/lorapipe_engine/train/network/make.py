"""The network that a run trains: its modules, ranks and rates as the options say."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import torch

from lorapipe_engine.errors import ConfigError, MissingExtra
from lorapipe_engine.nn.attach import Network, NetworkPlan, Target, attach
from lorapipe_engine.nn.quantize import quantize
from lorapipe_engine.settings import ModelSettings, NetworkSettings, TrainSettings
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.network.arguments import NetworkArgs, network_plan, read_network_args
from lorapipe_engine.train.network.choice import choose_layers, every_target
from lorapipe_engine.train.network.files.decided import Decided
from lorapipe_engine.train.network.files.start_from import (
    file_names,
    load_start,
    read_start,
    with_sizes_of,
)
from lorapipe_engine.train.network.files.trained_file import TrainedFile
from lorapipe_engine.train.network.rate_groups import RateGroups

Say = Callable[[str], None]


@dataclass(frozen=True)
class Planned:
    """The layers that are trained, what each of them gets, and notes. ``start``: the file that is gone on with, and
    the names that it may have for a layer. ``within``: the layers and norms of the parts that are trained."""

    targets: Sequence[Target]
    plan: NetworkPlan
    notes: tuple[str, ...]
    start: TrainedFile | None
    names: Mapping[str, str]
    within: frozenset[str] = frozenset()


def plan_network(
    network: NetworkSettings, args: NetworkArgs, family: Family, parts: Collection[str]
) -> Planned:
    """What the ``parts`` of a family that are trained will have. Call it before adapters are attached.

    Raises ConfigError for block-wise options that do not fit the family, InputError for files that do not.
    """
    plan = network_plan(network, args)
    names = file_names(family)
    start = read_start(network.network_weights) if network.network_weights else None
    every = [target for target in every_target(family) if target.part in parts]
    within = frozenset(target.name for target in every)
    if start is not None and network.dim_from_weights:
        return Planned(every, with_sizes_of(start, plan, every, names), (), start, names, within)
    choice = choose_layers(plan, args, family, parts)
    return Planned(choice.targets, choice.plan, choice.notes, start, names, within)


def make_network(
    settings: TrainSettings, args: NetworkArgs, family: Family, rates: Mapping[str, float], say: Say
) -> Network:
    """Put a network into the parts of the model that have a rate above 0: a fresh one, drawn from the run's seed, or
    one that goes on from a file.

    Raises ConfigError for block-wise options that do not fit the family, InputError for files that do not.
    """
    chosen = settings.network
    quantize_base(settings.model, family)
    if args.unused:
        say(f"note: network_args: {', '.join(args.unused)} changes nothing here")
    planned = plan_network(chosen, args, family, [part for part, rate in rates.items() if rate > 0])
    for note in planned.notes:
        say(note)
    torch.manual_seed(settings.run.seed)
    network = attach(
        family.parts.values(), planned.targets, planned.plan, rate_of=RateGroups(args, family.name, rates)
    )
    faster = {network.parts[name] for name, adapter in network.adapters.items() if adapter.faster}
    if idle := args.idle_ratios(faster):
        what = "no such part is trained" if faster else "what is trained has one rate for each part"
        say(f"note: network_args: {', '.join(idle)} does nothing: {what}")
    if planned.start is not None:
        for note in load_start(planned.start, network, planned.names, planned.within):
            say(note)
    network.train()
    if settings.model.gradient_checkpointing:
        family.checkpoint_activations(
            with_draws=planned.plan.dropouts.any
            or any(adapter.draws for adapter in network.adapters.values())
        )
    return network


def quantize_base(model: ModelSettings, family: Family) -> None:
    """Quantize the frozen weights to 8 or 4 bits where that is asked for; after networks were merged into them."""
    form = quantized_form(model)
    if form is None:
        return
    only_unet = model.fp8_base_unet and not model.fp8_base
    for part in (family.denoiser,) if only_unet else (family.denoiser, *family.text.modules.values()):
        quantize(part, form)


def quantized_form(model: ModelSettings) -> str | None:
    """The form of :data:`lorapipe_engine.nn.quantize.FORMS` to quantize the frozen weights to; None: they stay as
    they are.

    Raises ConfigError for two forms at once, MissingExtra where the package for one is not installed.
    """
    if model.quantize_base is None:
        return "fp8" if model.fp8_base or model.fp8_base_unet else None
    if model.fp8_base or model.fp8_base_unet:
        raise ConfigError(
            "quantize_base and fp8_base: the base is kept in one form only; leave one of the two out"
        )
    if model.quantize_base == "nf4" and find_spec("bitsandbytes") is None:
        raise MissingExtra("quantize_base nf4 needs bitsandbytes: pip install bitsandbytes")
    return model.quantize_base


def with_file_ranks(settings: TrainSettings) -> TrainSettings:
    """The settings with algorithm, rank and alpha as most modules of ``network_weights`` have them, where they come
    from there; the metadata tell them."""
    chosen = settings.network
    if chosen.network_weights is None or not chosen.dim_from_weights:
        return settings
    start = read_start(chosen.network_weights)
    return replace(settings, network=Decided(chosen, read_network_args(chosen), start).as_trained())
