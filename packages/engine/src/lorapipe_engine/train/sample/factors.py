"""The factors of a plain LoRA for a fused denoiser, checked against their layers."""

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
    file: TrainedFile, layers: Mapping[str, nn.Module], slots: Slots
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
    factors: list[tuple[nn.Module, Factor]] = []
    for name, layer in layers.items():
        shapes = _shapes(file, name, layer)
        down, up = (file.tensors[name][k].view(s) for k, s in zip((DOWN, UP), shapes, strict=True))
        factors.append((layer, Factor(down, up, file.sizes[name].alpha / len(down))))
    return factors, ""


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
