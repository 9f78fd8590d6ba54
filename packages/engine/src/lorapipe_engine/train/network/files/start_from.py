"""Starting from files: a network that is trained on (``network_weights``), and ones merged into the base before
(``base_weights``).

A file's alpha counts: a module that is taken from it works as strongly as it did there. sd-scripts keeps the new
network's scale beside the file's alpha, so that its result says another strength than it was trained at.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorapipe_engine.delta import Array, dense_delta
from lorapipe_engine.delta.whole import check_whole
from lorapipe_engine.errors import ConfigError, InputError, naming
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.tensorfile import WeightFile, quote
from lorapipe_engine.models.keys import lora_names
from lorapipe_engine.networks import algorithms
from lorapipe_engine.networks.describe import Network as DescribedNetwork
from lorapipe_engine.networks.describe import NetworkModule, describe_network
from lorapipe_engine.networks.kohya_names import canonical
from lorapipe_engine.networks.read import network_path, read_module, require_understood
from lorapipe_engine.nn.attach import Kind, Network, NetworkPlan, Target
from lorapipe_engine.nn.base import Adapter, adapter_class
from lorapipe_engine.settings import NetworkSettings
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.network.arguments import NetworkArgs
from lorapipe_engine.train.network.files.decided import HOW, Decided
from lorapipe_engine.train.network.files.trained_file import TrainedFile, read_trained
from lorapipe_engine.train.network.targets import every_layer, every_norm

OPTION = "network_weights"


def read_start(path: Path) -> TrainedFile:
    """Read a file to train on. Raises InputError for what is not trained here."""
    with naming(OPTION):
        path = network_path(path)
    return read_trained(path, OPTION)


def check_start(network: NetworkSettings, args: NetworkArgs) -> list[str]:
    """Look at the files before anything large is read; what the user should know. Raises ConfigError, InputError."""
    notes: list[str] = []
    if network.dim_from_weights and network.network_weights is None:
        raise ConfigError("dim_from_weights: takes the ranks of network_weights, so give that file too")
    multipliers = network.base_weights_multiplier
    if len(multipliers) > len(network.base_weights):
        raise ConfigError(
            f"base_weights_multiplier: {len(multipliers)} numbers for {len(network.base_weights)} base_weights"
        )
    if network.dim_from_weights and args.lists:
        raise ConfigError(
            "dim_from_weights: the ranks are those of the file; leave block_dims and the like out"
        )
    if network.network_weights is not None:
        start = read_start(network.network_weights)
        if network.dim_from_weights:
            decided = Decided(network, args, start)
            decided.check()
            notes += decided.notes()
    for path in network.base_weights:
        with naming("base_weights"), open_weights(network_path(path)) as file:
            _read_base_weights(file)
    return notes


# -------------------------------------------------------------------------------- the network


def file_names(family: Family) -> dict[str, str]:
    """Every name that a file may have for a layer of the model -> kohya's. Call it before adapters are attached."""
    names: dict[str, str] = {}
    for part, path, _ in (*every_layer(family), *every_norm(family)):
        own = lora_names(family.name, part, path)
        names |= dict.fromkeys((*own, *map(_lycoris, own)), family.lora_name(part, path))
    return names


def _lycoris(name: str) -> str:
    """The name that LyCORIS' wrapper gives to a layer, from kohya's."""
    return re.sub("^lora_", "lycoris_", name)


def with_sizes_of(
    start: TrainedFile, plan: NetworkPlan, targets: Iterable[Target], names: Mapping[str, str]
) -> NetworkPlan:
    """``dim_from_weights``: the plan with algorithm, rank and alpha of each target that the file has.

    Raises InputError if it has none.
    """
    own = {target.name for target in targets}
    there = {name: names[name] for name in start.sizes if names.get(name) in own}
    if not there:
        raise InputError(
            f"network_weights: {start.path}: none of its modules fits what is trained of this model"
        )
    return replace(
        plan,
        sizes={own_name: start.sizes[name] for name, own_name in there.items()},
        kinds={own_name: _kind(plan.kind, start.kinds[name]) for name, own_name in there.items()},
    )


def _kind(asked: Kind, stored: Kind) -> Kind:
    """The kind of a module of a file, trained as it was asked for where that makes the same files."""
    row = algorithms.algorithm_of(asked.algorithm)
    if row is not None and row.form == stored.algorithm:
        return Kind(asked.algorithm, {**asked.options, **stored.options})
    how = {name: asked.options[name] for name in HOW & asked.options.keys()}
    known = adapter_class(stored.algorithm).arguments
    return Kind(stored.algorithm, {**{n: v for n, v in how.items() if n in known}, **stored.options})


def load_start(
    start: TrainedFile, network: Network, names: Mapping[str, str], within: Collection[str]
) -> list[str]:
    """Copy the file's values and alphas into a network; what stayed out on either side, in a line each. ``within``: the
    layers of the parts that are trained.

    Raises InputError if nothing fits, or a module has another algorithm, rank or shape.
    """
    spare = [name for name in start.sizes if names.get(name) not in network.adapters]
    if len(spare) == len(start.sizes):
        raise InputError(
            f"network_weights: {start.path}: none of its modules fits what is trained of this model"
        )
    taken = {names[name]: name for name in start.sizes if names.get(name) in network.adapters}
    for own_name, name in taken.items():
        _fill(start, name, network.adapters[own_name])
    fresh = [name for name in network.adapters if name not in taken]
    notes = [f"network_weights: {len(taken)} modules from {start.path}"]
    nowhere = [name for name in spare if name not in names]
    nowhere += [name for name in start.others if not name.endswith("position_ids")]
    untrained = [name for name in spare if name in names and names[name] not in within]
    left = [name for name in spare if name in names and names[name] in within]
    if nowhere:
        notes.append(f"note: {len(nowhere)} modules or tensors fit nowhere, first {quote(nowhere[0])}")
    if untrained:
        notes.append(
            f"note: {len(untrained)} modules of the file are of a part that is not trained, and the new file lacks "
            f"them, first {quote(untrained[0])}"
        )
    if left:
        notes.append(
            f"note: {len(left)} modules of the file are not in this network, first {quote(left[0])}; "
            "--dim_from_weights takes all that fit the model"
        )
    if fresh:
        notes.append(
            f"note: {len(fresh)} modules of this network are not in the file and start fresh, first {fresh[0]}"
        )
    return notes


def _fill(start: TrainedFile, name: str, adapter: Adapter) -> None:
    where = f"network_weights: {start.path}: {quote(name)}"
    size, kind, tensors = start.sizes[name], start.kinds[name], start.tensors[name]
    if not isinstance(adapter, adapter_class(kind.algorithm)):
        raise InputError(
            f"{where} is of the algorithm {kind.algorithm}, this network of another; give --dim_from_weights"
        )
    if size.rank != adapter.rank:
        stored = sum(tensor.numel() for suffix, tensor in tensors.items() if suffix != "alpha")
        if stored != adapter.count(tuple(adapter.weight.shape), size, {**adapter.options, **kind.options}):
            raise InputError(f"{where} does not fit the model's layer")
        raise InputError(
            f"{where} has rank {size.rank}, this network {adapter.rank}; give --dim_from_weights, or --network_dim "
            f"{size.rank}"
        )
    try:
        adapter.load(tensors)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


# -------------------------------------------------------------------------------- the base


def merge_into_base(network: NetworkSettings, family: Family) -> list[str]:
    """``base_weights``: add each file's change to the base's weights, before a network is attached; what was done.

    Any algorithm that lora-merge knows; modules that the model lacks are told, not dropped in silence. Raises
    InputError for a file of which nothing fits.
    """
    notes: list[str] = []
    layers = _layers(family) if network.base_weights else {}
    for index, path in enumerate(network.base_weights):
        given = network.base_weights_multiplier
        multiplier = given[index] if index < len(given) else 1.0
        with naming(f"base_weights: {path}"), open_weights(network_path(path)) as file:
            described = _read_base_weights(file)
            fitting = [module for module in described.modules.values() if canonical(module.name) in layers]
            if not fitting:
                of = "" if described.family in (None, family.name) else f"; it is for {described.title}"
                raise InputError(f"none of its modules fits this model ({family.name}){of}")
            if described.family not in (None, family.name) and len(fitting) < len(described.modules):
                raise InputError(f"is for {described.title}, the base is {family.facts.title}")
            _check_unique(fitting, layers)
            for module in fitting:
                if module.keys.keys() != {"alpha"}:
                    _add(layers[canonical(module.name)], module.name, read_module(file, module), multiplier)
        spare = [name for name in described.modules if canonical(name) not in layers]
        spare += [name for name in described.others if not name.endswith("position_ids")]
        told = (
            f"; note: {len(spare)} modules or tensors fit nowhere, first {quote(spare[0])}" if spare else ""
        )
        notes.append(
            f"base_weights: {path} merged into the base at {multiplier:g} ({len(fitting)} modules){told}"
        )
    return notes


def _read_base_weights(file: WeightFile) -> DescribedNetwork:
    """The network in a file that is merged. Raises InputError where it is not known what it changes."""
    network = describe_network(file)
    require_understood(network)
    for module in network.modules.values():
        if module.keys.keys() != {"alpha"}:
            check_whole(file, module)
    return network


def _check_unique(modules: Iterable[NetworkModule], layers: Mapping[str, Any]) -> None:
    """Raise InputError for two modules of one layer: which of them counts no file tells."""
    seen: dict[int, str] = {}
    for module in modules:
        layer = id(layers[canonical(module.name)])
        if layer in seen:
            raise InputError(f"names one layer twice, as {quote(seen[layer])} and as {quote(module.name)}")
        seen[layer] = module.name


def _layers(family: Family) -> dict[str, Any]:
    """Every layer with a weight, by every name that a file may have for it."""
    layers: dict[str, Any] = {}
    for part, root in family.parts.items():
        for path, module in root.named_modules():
            if isinstance(getattr(module, "weight", None), Tensor):
                layers |= dict.fromkeys(lora_names(family.name, part, path), module)
    return layers


@torch.no_grad()
def _add(module: Any, name: str, tensors: Mapping[str, Array], multiplier: float) -> None:
    weight, bias = module.weight, getattr(module, "bias", None)
    plain = weight.detach().to("cpu", torch.float32)
    plain_bias = None if bias is None else bias.detach().to("cpu", torch.float32).numpy()
    change = dense_delta(tensors, plain.numpy(), plain_bias, multiplier, name=name, dtype=np.float32)
    if change.weight is not None:
        # Rounded once: the sum in float32, then the dtype of the base.
        weight.copy_(plain + torch.from_numpy(change.weight))
    if change.bias is not None:
        if bias is None or plain_bias is None:
            raise InputError(f"module {name}: changes a bias, which its layer has not")
        bias.copy_(torch.from_numpy(plain_bias + change.bias))
