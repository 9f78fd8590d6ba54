"""The factors of a plain LoRA for a fused denoiser: read from its file, checked, on the device in one copy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import quote
from lorapipe_engine.nn.fused.slots import Factor, Slots
from lorapipe_engine.train.network.trained_file import TrainedFile

DOWN, UP = "lora_down.weight", "lora_up.weight"


def read_factors(
    file: TrainedFile, layers: Mapping[str, nn.Module], slots: Slots, device: torch.device
) -> tuple[list[tuple[nn.Module, Factor]] | None, str]:
    """The change of each layer, by the module's name in the file; None, and why, where one is no plain LoRA of a layer
    in ``slots``.

    Raises InputError for factors that do not fit their layer.
    """
    for name, layer in layers.items():
        if file.kinds[name].algorithm != "lora" or not file.tensors[name].keys() <= {DOWN, UP, "alpha"}:
            return None, f"{quote(name)} is no plain LoRA"
        if not slots.has(layer):
            return None, f"{quote(name)} changes a layer outside of the fused blocks"
    shapes = {name: _shapes(file, name, layer) for name, layer in layers.items()}
    pieces = [file.tensors[name][key].flatten() for name in layers for key in (DOWN, UP)]
    if not pieces:
        return [], ""
    flat = torch.cat(pieces).to(device)
    parts = iter(torch.split(flat, [len(piece) for piece in pieces]))
    found: list[tuple[nn.Module, Factor]] = []
    for name, layer in layers.items():
        down, up = (next(parts).view(shape) for shape in shapes[name])
        found.append((layer, Factor(down, up, _scale(file.tensors[name], len(down)))))
    return found, ""


def _shapes(file: TrainedFile, name: str, layer: nn.Module) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Shapes of down and up. Linear layers and 1x1 convolutions are stored either way, so only the number counts."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    rank = file.sizes[name].rank
    down, up = (rank, *weight.shape[1:]), (len(weight), rank)
    for key, shape in ((DOWN, down), (UP, up)):
        tensor = file.tensors[name][key]
        if tensor.numel() != torch.Size(shape).numel():
            given = tuple(tensor.shape)
            raise InputError(
                f"{file.path}: {name}: {key} has shape {given}, the model's layer needs {tuple(shape)}"
            )
    return down, up


def _scale(tensors: Mapping[str, Tensor], rank: int) -> float:
    alpha = float(tensors["alpha"]) if "alpha" in tensors else 0.0
    return (alpha or float(rank)) / rank
