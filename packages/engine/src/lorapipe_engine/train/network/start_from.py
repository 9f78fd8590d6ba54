"""Starting from files: a network that is trained on (``network_weights``), and ones merged into the base before
(``base_weights``).

A file's alpha counts: a module that is taken from it works as strongly as it did there. sd-scripts keeps the new
network's scale beside the file's alpha, so that its result says another strength than it was trained at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorapipe_engine.delta import Array, dense_delta
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.tensorfile import quote
from lorapipe_engine.models.keys import lora_names
from lorapipe_engine.networks.describe import NetworkModule, describe_network
from lorapipe_engine.networks.read import read_module
from lorapipe_engine.nn.attach import Network, Target
from lorapipe_engine.nn.lora import Lora
from lorapipe_engine.settings import NetworkSettings
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.network.arguments import read_network_args

FACTORS = ("lora_down.weight", "lora_up.weight")


@dataclass(frozen=True)
class StartFile:
    """A LoRA file to train on: rank, alpha and factors of each module, by its name there."""

    path: Path
    sizes: Mapping[str, tuple[int, float]]
    factors: Mapping[str, tuple[Tensor, Tensor]]


def read_start(path: Path) -> StartFile:
    """Read a plain LoRA, in kohya's names or others. Raises InputError for anything else."""
    with open_weights(path) as file:
        described = describe_network(file)
        sizes: dict[str, tuple[int, float]] = {}
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        for name, module in described.modules.items():
            sizes[name] = _size(path, module)
            down, up = (torch.from_numpy(np.array(file.read(module.keys[role]))) for role in FACTORS)
            factors[name] = (down.float(), up.float())
    return StartFile(path, sizes, factors)


def _size(path: Path, module: NetworkModule) -> tuple[int, float]:
    plain = module.algorithm == "lora" and not module.tucker and not module.dora
    if not plain or module.rank is None or not set(FACTORS) <= set(module.keys):
        raise InputError(
            f"network_weights: {path}: {quote(module.name)} is no plain LoRA, and only those can be trained on here"
        )
    return module.rank, module.effective_alpha or float(module.rank)


def check_start(network: NetworkSettings) -> None:
    """Look at the files before anything large is read. Raises ConfigError, InputError."""
    if network.dim_from_weights and network.network_weights is None:
        raise ConfigError("dim_from_weights: takes the ranks of network_weights, so give that file too")
    multipliers = network.base_weights_multiplier
    if len(multipliers) > len(network.base_weights):
        raise ConfigError(
            f"base_weights_multiplier: {len(multipliers)} numbers for {len(network.base_weights)} base_weights"
        )
    if network.dim_from_weights and read_network_args(network.network_args).lists:
        raise ConfigError(
            "dim_from_weights: the ranks are those of the file; leave block_dims and the like out"
        )
    if network.network_weights is not None:
        read_start(network.network_weights)
    for path in network.base_weights:
        with open_weights(path) as file:
            describe_network(file)


# -------------------------------------------------------------------------------- the network


def file_names(family: Family) -> dict[str, str]:
    """Every name that a file may have for a layer of the model -> kohya's. Call it before adapters are attached."""
    found: dict[str, str] = {}
    for part, path, _ in family.target_modules(conv=True):
        found |= dict.fromkeys(lora_names(family.name, part, path), family.lora_name(part, path))
    return found


def sizes_of(
    start: StartFile, targets: Iterable[Target], names: Mapping[str, str]
) -> dict[str, tuple[int, float]]:
    """``dim_from_weights``: rank and alpha of each target that the file has. Raises InputError if it has none."""
    own = {target.name for target in targets}
    found = {names[name]: size for name, size in start.sizes.items() if names.get(name) in own}
    if not found:
        raise InputError(
            f"network_weights: {start.path}: none of its modules fits what is trained of this model"
        )
    return found


def load_start(start: StartFile, network: Network, names: Mapping[str, str]) -> list[str]:
    """Copy the file's factors and alphas into a network; what stayed out on either side, in a line each.

    Raises InputError if nothing fits, or a module has another rank or shape.
    """
    spare = [name for name in start.sizes if names.get(name) not in network.adapters]
    if len(spare) == len(start.sizes):
        raise InputError(
            f"network_weights: {start.path}: none of its modules fits what is trained of this model"
        )
    taken = set()
    for name, tensors in start.factors.items():
        if name in spare:
            continue
        adapter = network.adapters[names[name]]
        if isinstance(adapter, Lora):
            _fill(start, name, adapter, tensors)
            taken.add(names[name])
    fresh = [name for name in network.adapters if name not in taken]
    notes = [f"network_weights: {len(taken)} modules from {start.path}"]
    if spare:
        notes.append(
            f"note: {len(spare)} modules of the file are not in this network, first {quote(spare[0])}; "
            "--dim_from_weights takes all that fit the model"
        )
    if fresh:
        notes.append(
            f"note: {len(fresh)} modules of this network are not in the file and start fresh, first {fresh[0]}"
        )
    return notes


def _fill(start: StartFile, name: str, adapter: Lora, tensors: tuple[Tensor, Tensor]) -> None:
    rank, alpha = start.sizes[name]
    pairs = list(zip((adapter.lora_down, adapter.lora_up), tensors, strict=True))
    if any(own.numel() * rank != tensor.numel() * adapter.rank for own, tensor in pairs):
        raise InputError(f"network_weights: {start.path}: {quote(name)} does not fit the model's layer")
    if rank != adapter.rank:
        raise InputError(
            f"network_weights: {start.path}: {quote(name)} has rank {rank}, this network {adapter.rank}; "
            f"give --dim_from_weights, or --network_dim {rank}"
        )
    with torch.no_grad():
        for own, tensor in pairs:
            own.copy_(tensor.reshape(own.shape))
    adapter.alpha = alpha


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
        with open_weights(path) as file:
            described = describe_network(file).modules
            fitting = [name for name in described if name in layers]
            if not fitting:
                raise InputError(f"base_weights: {path}: none of its modules fits this model ({family.name})")
            for name in fitting:
                tensors = read_module(file, described[name])
                _add(layers[name], name, tensors, multiplier)
        spare = [name for name in described if name not in layers]
        told = f"; note: {len(spare)} modules fit nowhere, first {quote(spare[0])}" if spare else ""
        notes.append(
            f"base_weights: {path} merged into the base at {multiplier:g} ({len(fitting)} modules){told}"
        )
    return notes


def _layers(family: Family) -> dict[str, Any]:
    """Every layer with a weight, by every name that a file may have for it."""
    found: dict[str, Any] = {}
    for part, root in family.parts.items():
        for path, module in root.named_modules():
            if isinstance(getattr(module, "weight", None), Tensor):
                found |= dict.fromkeys(lora_names(family.name, part, path), module)
    return found


@torch.no_grad()
def _add(module: Any, name: str, tensors: Mapping[str, Array], multiplier: float) -> None:
    weight, bias = module.weight, getattr(module, "bias", None)
    plain = weight.detach().to("cpu", torch.float32)
    plain_bias = None if bias is None else bias.detach().to("cpu", torch.float32).numpy()
    change = dense_delta(tensors, plain.numpy(), plain_bias, multiplier, name=name, dtype=np.float32)
    if change.weight is not None:
        # Rounded once: the sum in float32, then the dtype of the base.
        weight.copy_(plain + torch.from_numpy(change.weight))
    if change.bias is not None and bias is not None and plain_bias is not None:
        bias.copy_(torch.from_numpy(plain_bias + change.bias))
