"""Put a finished network file into a loaded model, for drawing with it."""

from __future__ import annotations

from pathlib import Path

import torch

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import open_tensors, quote
from lorapipe_engine.networks.describe import NetworkModule, describe_network
from lorapipe_engine.nn.attach import Network, NetworkPlan, Target, attach
from lorapipe_engine.train.families.base import Family


def attach_file(family: Family, path: Path, multiplier: float = 1.0) -> Network:
    """Attach a LoRA file in kohya's names at a strength; ranks may differ from module to module.

    Raises InputError where the file is not such a network, or has a module that the model lacks.
    """
    with open_tensors(path) as file:
        modules = describe_network(file).modules
        sizes = {name: _size(path, module) for name, module in modules.items()}
        tensors = {
            f"{name}.{suffix}": torch.from_numpy(file.read(key))
            for name, module in modules.items()
            for suffix, key in module.keys.items()
        }
    targets = {
        (name := family.lora_name(part, place)): Target(part, name, module)
        for part, place, module in family.target_modules(conv=True)
    }
    if missing := [name for name in sizes if name not in targets]:
        raise InputError(
            f"{path}: {len(missing)} modules fit nowhere in the model, first {quote(missing[0])}"
        )
    plan = NetworkPlan(rank=1, alpha=1.0, sizes=sizes)
    network = attach(family.parts.values(), [targets[name] for name in sizes], plan)
    shapes = network.file_tensors()
    network.load({key: _fitted(path, key, tensors.get(key), like) for key, like in shapes.items()})
    network.set_multiplier(multiplier)
    network.train(False)
    return network


def _size(path: Path, module: NetworkModule) -> tuple[int, float]:
    if module.algorithm != "lora" or module.tucker or module.dora or module.rank is None:
        raise InputError(f"{path}: {module.name} is no plain LoRA, so the file cannot be attached here")
    return module.rank, module.effective_alpha or 0.0


def _fitted(path: Path, key: str, tensor: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    if key.endswith(".alpha"):
        return like
    if tensor is None or tensor.numel() != like.numel():
        raise InputError(f"{path}: {quote(key)} does not fit the model")
    return tensor.reshape(like.shape)  # 1x1 convolutions and linear layers are stored either way
