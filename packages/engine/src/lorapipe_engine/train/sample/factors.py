"""The factors of a network for a fused denoiser: a LoRA's own, or those that it equals, checked against the layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import quote
from lorapipe_engine.nn.base import Adapter, adapter_class, alike
from lorapipe_engine.nn.fused.drawing.slots import Factor, Slots
from lorapipe_engine.train.network.files.trained_file import TrainedFile

DOWN, UP = "lora_down.weight", "lora_up.weight"


def read_factors(
    file: TrainedFile, layers: Mapping[str, nn.Module], slots: Slots, forms: Mapping[str, Factor]
) -> tuple[list[tuple[nn.Module, Factor]] | None, str]:
    """The change of each layer, by the module's name in the file; None, and why, where one has no factors or is of a
    layer outside of ``slots``. ``forms``: the factors of those that are no plain LoRA.

    Raises InputError for factors that do not fit their layer.
    """
    for name, layer in layers.items():
        if name not in forms and not _is_plain(file, name):
            return None, f"{quote(name)} is no LoRA, nor equal to one of low rank"
        if not slots.has(layer):
            return None, f"{quote(name)} changes a layer outside of the fused blocks"
    factors: list[tuple[nn.Module, Factor]] = []
    for name, layer in layers.items():
        if name in forms:
            factors.append((layer, forms[name]))
            continue
        shapes = _shapes(file, name, layer)
        down, up = (file.tensors[name][k].view(s) for k, s in zip((DOWN, UP), shapes, strict=True))
        factors.append((layer, Factor(down, up, file.sizes[name].alpha / len(down))))
    return factors, ""


def without_factors(file: TrainedFile, names: Iterable[str]) -> list[str]:
    """The modules that are no plain LoRA, of algorithms that may equal one."""
    return [
        name
        for name in names
        if not _is_plain(file, name) and "short_form" in vars(adapter_class(file.kinds[name].algorithm))
    ]


@torch.no_grad()
def short_factors(adapters: Mapping[str, Adapter]) -> dict[str, Factor]:
    """The factors that adapters equal, by their names, those of one kind and shape made together; without those that
    have no such form, or magnitudes besides."""
    plain = ((name, adapter) for name, adapter in adapters.items() if adapter.short_axis() is None)
    names = {id(adapter): name for name, adapter in plain if adapter.short_rank()}
    factors: dict[str, Factor] = {}
    for rows in alike(adapter for adapter in adapters.values() if id(adapter) in names):
        roles = [*rows[0].roles, *rows[0].frozen]
        values = {role: torch.stack([getattr(row, role).detach() for row in rows]) for role in roles}
        for row, down, up in zip(rows, *type(rows[0]).short_form(rows, values), strict=True):
            shaped = down.reshape(-1, *row.weight.shape[1:]).float().contiguous()
            factors[names[id(row)]] = Factor(shaped, up.reshape(len(up), -1).float().contiguous(), 1.0)
    return factors


def _is_plain(file: TrainedFile, name: str) -> bool:
    return file.kinds[name].algorithm == "lora" and file.tensors[name].keys() <= {DOWN, UP, "alpha"}


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
