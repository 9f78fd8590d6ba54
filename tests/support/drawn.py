"""Networks of random values and cells of plans, for tests that draw."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lorapipe_engine.nn.base import NO_DROPOUT, Size, adapter_class
from lorapipe_engine.sampling.cells import Cell
from lorapipe_engine.sampling.shelf import Loaded, NetworkFile
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.network.choice import every_target


def write_network(
    path: Path, family: Family, *, rank: int, seed: int, conv: bool = False, first: bool = False
) -> Loaded:
    """A LoRA of random values on every layer in blocks; ``conv``: on residual blocks too; ``first``: on conv_in too."""
    draw = torch.Generator().manual_seed(seed)
    tensors: dict[str, Any] = {}
    names = {family.lora_name(part, place) for part, place, _ in family.target_modules(conv=conv)}
    for target in every_target(family):
        weight = target.module.weight
        if target.name not in names and not (first and target.module is family.denoiser.conv_in):
            continue
        fan = weight[0].numel()
        tensors[f"{target.name}.lora_down.weight"] = (
            torch.randn(rank, *weight.shape[1:], generator=draw) / fan**0.5
        )
        up = torch.randn(len(weight), rank, *[1] * (weight.dim() - 2), generator=draw)
        tensors[f"{target.name}.lora_up.weight"] = up * 0.2
        tensors[f"{target.name}.alpha"] = torch.tensor(rank / 2)
    save_file(tensors, path)
    return Loaded(NetworkFile(path, path.stem), 0.8, 0.7)


def write_factored(path: Path, family: Family, algorithm: str, *, rank: int) -> Loaded:
    """A LoHa or LoKr of random values on every layer in blocks."""
    draw = torch.Generator().manual_seed(4)
    adapter = adapter_class(algorithm)
    tensors: dict[str, Any] = {}
    for part, place, module in family.target_modules():
        name = family.lora_name(part, place)
        for role, shape in adapter.shapes(tuple(module.weight.shape), Size(rank, 1.0), {}).items():
            tensors[f"{name}.{adapter.suffix(role)}"] = torch.randn(shape, generator=draw) * 0.2
        tensors[f"{name}.alpha"] = torch.tensor(rank / 2)
    save_file(tensors, path)
    return Loaded(NetworkFile(path, path.stem), 0.8, 0.7)


def write_adapters(
    path: Path, family: Family, algorithm: str, options: Mapping[str, Any], seed: int = 5
) -> Loaded:
    """A network of any algorithm on every layer in blocks, not far from what training begins with."""
    draw = torch.Generator().manual_seed(seed)
    tensors: dict[str, Any] = {}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for part, place, module in family.target_modules():
            adapter = adapter_class(algorithm).create(module, Size(2, 1.0), NO_DROPOUT, options)
            for parameter in adapter.parameters(recurse=False):
                parameter += 0.05 * torch.randn(parameter.shape, generator=draw).to(parameter.device)
            name = family.lora_name(part, place)
            for suffix, tensor in adapter.file_tensors().items():
                tensors[f"{name}.{suffix}"] = tensor.detach().cpu().clone()
    save_file(tensors, path)
    return Loaded(NetworkFile(path, path.stem), 0.8, 0.7)


def cell_of(seed: int, prompt: str = "a cat", *, cfg: float = 7.0, sampler: str = "Euler a") -> Cell:
    """A picture of 64x32 pixels in three steps."""
    return Cell(
        prompt=prompt, text=prompt, negative="", networks=(), seed=seed, steps=3, sampler=sampler,
        schedule="Automatic", cfg=cfg, eta=None, width=64, height=32, clip_skip=1, base=None, vae=None,
    )  # fmt: skip
