"""Frozen layers with room beside them for the factors of networks, which are put in and taken out in place.

The layers of one slot read the same input. Their weights W (out, in) stand with factors A (R, in) and sB (out, R) in
one matrix, as in :mod:`.packed`: [y | h] = x [W; A]ᵀ, then y + h·sBᵀ. Here nothing is trained: the factors of several
networks lie side by side, each B times its strength. Their addresses stay as long as the room is enough, so that a
captured graph reads the next networks where the last ones were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorapipe_engine.nn import kernels

STEP = 16  # ranks are padded to this, which keeps rows on 32-byte boundaries in half precision


@dataclass(frozen=True)
class Factor:
    """A layer's change: ``scale`` · up · down; ``down`` (r, in) or (r, in, k, k) and ``up`` (out, r) are float32, where
    the layer is."""

    down: Tensor
    up: Tensor
    scale: float

    @property
    def rank(self) -> int:
        """Rows of ``down``."""
        return len(self.down)


class Slot:
    """Linear layers or 1x1 convolutions that read one input; the layers' weights become views of ``matrix``
    (out + R, in + R).

    ``weight`` (out, in), ``joined`` (out, in + R) = [W | sB], ``left`` (out + R, in) = [W; A], ``down`` (R, in), ``up``
    (out, R), ``bias`` (out,) or None, ``left_bias`` the same with R zeros.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self.layers = list(layers)
        self.outs = [len(layer.weight) for layer in self.layers]
        self.out, self.width = sum(self.outs), self.layers[0].weight[0].numel()
        self.bias = _biases(self.layers)
        self.up: Tensor
        self.make_room(0)

    def make_room(self, rank: int) -> None:
        """Have room for factors of ``rank`` in all, a multiple of 16; what was in there is gone."""
        self.rank = rank
        like = self.layers[0].weight.data
        matrix = like.new_zeros(self.out + rank, self.width + rank)
        row = 0
        for layer, out in zip(self.layers, self.outs, strict=True):
            place = matrix[row : row + out, : self.width]
            place.copy_(layer.weight.data.flatten(1))
            layer.weight.data = place.view(layer.weight.shape)
            row += out
        self.matrix = matrix
        self.weight, self.joined = matrix[: self.out, : self.width], matrix[: self.out]
        self.left, self.down = matrix[:, : self.width], matrix[self.out :, : self.width]
        self.up = matrix[: self.out, self.width :]
        self.left_bias = None if self.bias is None else torch.cat([self.bias, like.new_zeros(rank)])

    def up_of(self, place: int) -> Tensor:
        """The rows of ``up`` that belong to one of the layers, (its out, R)."""
        start = sum(self.outs[:place])
        return self.up[start : start + self.outs[place]]


class ConvSlot:
    """A convolution: ``left`` (out + R, in, k, k) = [W; A] in channels-last order, ``up`` (out, R) = sB."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self.layers: list[Any] = [layer]
        self.up: Tensor
        self.outs = [layer.out_channels]
        self.make_room(0)

    def make_room(self, rank: int) -> None:
        """See :meth:`Slot.make_room`."""
        self.rank = rank
        weight = self.layers[0].weight.data
        left = torch.zeros(
            self.outs[0] + rank, *weight.shape[1:], dtype=weight.dtype, device=weight.device
        ).contiguous(memory_format=torch.channels_last)
        left[: self.outs[0]] = weight
        self.layers[0].weight.data = left[: self.outs[0]]
        self.left, self.down = left, left[self.outs[0] :]
        self.up = weight.new_zeros(self.outs[0], rank)

    def up_of(self, place: int) -> Tensor:  # noqa: ARG002
        """``up``: there is one layer."""
        return self.up


class BesideSlot:
    """A linear layer that others run: ``down`` (R, in) and ``up`` (out, R) alone."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layers: list[Any] = [layer]
        self.up: Tensor
        self.down: Tensor
        self.make_room(0)

    def make_room(self, rank: int) -> None:
        """See :meth:`Slot.make_room`."""
        self.rank = rank
        weight = self.layers[0].weight.data
        self.down, self.up = weight.new_zeros(rank, weight.shape[1]), weight.new_zeros(len(weight), rank)

    def up_of(self, place: int) -> Tensor:  # noqa: ARG002
        """``up``: there is one layer."""
        return self.up

    def added(self, x: Tensor) -> Tensor | None:
        """What the factors add to the layer's result of x (N, in): (N, out); None where there is no room."""
        return x @ self.down.mT @ self.up.mT if self.rank else None


AnySlot = Slot | ConvSlot | BesideSlot


class Slots:
    """All slots of a model. ``version`` changes where addresses do: what was captured before is of no use then."""

    def __init__(self, slots: Sequence[AnySlot]) -> None:
        self._slots = list(slots)
        self._places = {
            id(layer): (slot, place) for slot in self._slots for place, layer in enumerate(slot.layers)
        }
        # Places and ranks of the factors in each slot: where the next ones lie alike, nothing is left between them.
        self._filled: dict[int, list[tuple[int, int]]] = {}
        # The layers and ranks of the last factors, in their order, and the places that these were copied to.
        self._order: list[tuple[int, int]] | None = None
        self._targets: list[tuple[Tensor, Tensor]] = []
        self.version = 0

    def has(self, layer: nn.Module) -> bool:
        """Whether a layer's change can be put in."""
        return id(layer) in self._places

    @torch.inference_mode(False)
    @torch.no_grad()
    def fill(self, changes: Sequence[tuple[nn.Module, Factor]]) -> None:
        """Have these factors in the model, and no others. Room that is too small grows."""
        order = [(id(layer), factor.rank) for layer, factor in changes]
        if order != self._order:  # networks of one run lie alike
            self._order, self._targets = None, []  # which would keep the memory of slots that grow
            self._targets = self._lay_out(changes)
            self._order = order
        copies = _Copies()
        for (_, factor), (down, up) in zip(changes, self._targets, strict=True):
            copies.add(factor.down, down, 1.0)
            copies.add(factor.up.flatten(1), up, factor.scale)
        copies.run()

    def _lay_out(self, changes: Sequence[tuple[nn.Module, Factor]]) -> list[tuple[Tensor, Tensor]]:
        """The places of each factor's down and up. Nothing is left in the others."""
        by_slot: dict[int, list[tuple[int, int]]] = {}
        for layer, factor in changes:
            slot, place = self._places[id(layer)]
            by_slot.setdefault(id(slot), []).append((place, factor.rank))
        self._grow({key: sum(rank for _, rank in rows) for key, rows in by_slot.items()})
        for slot in self._slots:
            layout = by_slot.get(id(slot), [])
            if slot.rank and layout != self._filled.get(id(slot), []):
                slot.down.zero_()
                slot.up.zero_()
            self._filled[id(slot)] = layout
        taken: Counter[int] = Counter()
        targets = []
        for layer, factor in changes:
            slot, place = self._places[id(layer)]
            start = taken[id(slot)]
            taken[id(slot)] += factor.rank
            ranks = slice(start, start + factor.rank)
            targets.append((slot.down[ranks], slot.up_of(place)[:, ranks]))
        return targets

    def _grow(self, needs: Mapping[int, int]) -> None:
        for slot in self._slots:
            need = -(-needs.get(id(slot), 0) // STEP) * STEP
            if need > slot.rank:
                slot.make_room(need)
                self.version += 1


class _Copies:
    """Copies of matrices, in one kernel where both are rows; kernels of convolutions lie in another order."""

    def __init__(self) -> None:
        self._rows: list[tuple[Tensor, Tensor, float]] = []

    def add(self, source: Tensor, target: Tensor, scale: float) -> None:
        if target.dim() == 2:
            self._rows.append((source.flatten(1).contiguous(), target, scale))
        else:
            target.copy_(source.view(target.shape) * scale)

    def run(self) -> None:
        if self._rows:
            sources, targets, scales = zip(*self._rows, strict=True)
            kernels.many_copies(sources, targets, scales).run()


def _biases(layers: Sequence[Any]) -> Tensor | None:
    """The biases of layers, one behind the other; None where none has one."""
    if all(layer.bias is None for layer in layers):
        return None
    return torch.cat(
        [
            layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias.detach()
            for layer in layers
        ]
    )
