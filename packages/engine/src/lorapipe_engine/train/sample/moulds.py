"""Adapters of network files out of the model. Files of one run differ in their values alone, so an adapter is made once
for a layer, and then copied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy

import torch
from torch import Tensor, nn

from lorapipe_engine.errors import InputError
from lorapipe_engine.nn.attach import Kind, Target
from lorapipe_engine.nn.base import NO_DROPOUT, Adapter, Size, adapter_class
from lorapipe_engine.train.network.files.trained_file import TrainedFile


class Moulds:
    """An adapter without values for each layer, as the last file needed it."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Size, Kind, Adapter]] = {}

    def adapters(
        self, file: TrainedFile, targets: Mapping[str, Target], names: Iterable[str]
    ) -> dict[str, Adapter]:
        """Some of a file's modules at strength 1, by their names, none of them in the model.

        Raises InputError where one does not fit its layer, TypeError for a layer that cannot be adapted.
        """
        adapters = {name: self._adapter(targets[name], file.sizes[name], file.kinds[name]) for name in names}
        for name, adapter in adapters.items():
            try:
                adapter.load(file.tensors[name])
            except InputError as error:
                raise InputError(f"{file.path}: {name}: {error}") from error
        return adapters

    def _adapter(self, target: Target, size: Size, kind: Kind) -> Adapter:
        """An adapter of a layer, of any values."""
        device = next(target.module.parameters()).device
        known = self._made.get(target.name)
        if known is not None and known[:2] == (size, kind):
            return _like(known[2], device)
        made = adapter_class(kind.algorithm).create(target.module, size, NO_DROPOUT, kind.options)
        made.training = False
        self._made[target.name] = size, kind, _like(made, torch.device("meta"))
        return made


def _like(adapter: Adapter, device: torch.device) -> Adapter:
    """A copy of an adapter around the same layer, with parameters of its own."""
    own = copy(adapter)
    own._parameters = {
        role: None if p is None else nn.Parameter(_empty(p, device), p.requires_grad)
        for role, p in adapter._parameters.items()
    }
    return own


def _empty(like: Tensor, device: torch.device) -> Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=device)
