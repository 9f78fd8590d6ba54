"""A network file as the engine trains on it or draws with it: what each module is, and its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.tensorfile import quote
from lorapipe_engine.networks.describe import NetworkModule, describe_network
from lorapipe_engine.networks.read import read_module, require_strengths
from lorapipe_engine.nn.attach import Kind
from lorapipe_engine.nn.base import Size, adapter_class


@dataclass(frozen=True)
class TrainedFile:
    """Of each module, by its name in the file: rank and alpha, the algorithm, and the tensors in float32, by suffix."""

    path: Path
    sizes: Mapping[str, Size]
    kinds: Mapping[str, Kind]
    tensors: Mapping[str, Mapping[str, Tensor]]


def read_trained(path: Path, option: str = "") -> TrainedFile:
    """Read a network of algorithms that are trained here, in kohya's names or others. ``option``: what named it.

    Raises InputError for any other file.
    """
    where = f"{option}: {path}" if option else f"{path}"
    sizes: dict[str, Size] = {}
    kinds: dict[str, Kind] = {}
    tensors: dict[str, dict[str, Tensor]] = {}
    with open_weights(path) as file:
        network = describe_network(file)
        require_strengths(network)
        for name, module in network.modules.items():
            tensors[name] = {
                suffix: torch.from_numpy(np.array(array)).float()
                for suffix, array in read_module(file, module).items()
            }
            for suffix, tensor in tensors[name].items():
                if not torch.isfinite(tensor).all():
                    raise InputError(
                        f"{where}: {quote(name)}: {suffix} has values that are not finite numbers"
                    )
            sizes[name] = Size(module.rank or 0, module.effective_alpha or float(module.rank or 0))
            kinds[name] = _kind(where, module, tensors[name])
    return TrainedFile(path, sizes, kinds, tensors)


def _kind(where: str, module: NetworkModule, tensors: Mapping[str, Tensor]) -> Kind:
    try:
        adapter = adapter_class(module.algorithm)
    except ConfigError as error:
        raise InputError(f"{where}: {quote(module.name)}: {error}") from error
    if lacking := sorted(adapter.needs - tensors.keys()):
        raise InputError(f"{where}: {quote(module.name)} has no {lacking[0]}")
    if odd := sorted(tensors.keys() - adapter.needs - adapter.reads - {"alpha"}):
        raise InputError(
            f"{where}: {quote(module.name)} is no plain {module.algorithm} (it has {odd[0]}), and only those can be "
            "trained on here"
        )
    return Kind(module.algorithm, adapter.options_in(tensors))
