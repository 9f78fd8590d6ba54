"""Put a finished network file into a loaded model, for drawing with it."""

from __future__ import annotations

from pathlib import Path

import torch

from lorapipe_engine.errors import InputError
from lorapipe_engine.nn.attach import Network, NetworkPlan, Target, attach
from lorapipe_engine.tensorfile import open_tensors
from lorapipe_engine.train.families.base import Family


def attach_file(family: Family, path: Path, multiplier: float = 1.0) -> Network:
    """Attach a LoRA file of one rank and alpha, as ``lora-train`` writes them, at a strength.

    Raises InputError where the file is not such a network, or does not fit the model.
    """
    with open_tensors(path) as file:
        tensors = {name: torch.from_numpy(file.read(name)) for name in file.tensors}
    sizes = {
        (
            tensors[key].shape[0],
            float(tensors[f"{key.partition('.')[0]}.alpha"]),
            tensors[key].dim() == 4 and tensors[key].shape[-1] > 1,
        )
        for key in tensors
        if key.endswith(".lora_down.weight") and f"{key.partition('.')[0]}.alpha" in tensors
    }
    plain = [(rank, alpha) for rank, alpha, conv in sizes if not conv]
    conv = [(rank, alpha) for rank, alpha, is_conv in sizes if is_conv]
    if len(plain) != 1 or len(conv) > 1:
        raise InputError(f"{path}: not a plain LoRA of one rank, so it cannot be attached here")
    plan = NetworkPlan(
        rank=plain[0][0],
        alpha=plain[0][1],
        conv_rank=conv[0][0] if conv else None,
        conv_alpha=conv[0][1] if conv else 1.0,
    )
    targets = [
        Target(part, name, module)
        for part, place, module in family.target_modules(conv=bool(conv))
        if f"{(name := family.lora_name(part, place))}.alpha" in tensors
    ]
    network = attach(family.parts.values(), targets, plan)
    network.load(tensors)
    network.set_multiplier(multiplier)
    network.train(False)
    return network
