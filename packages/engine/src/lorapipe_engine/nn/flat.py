"""Flat buffers: all parameters of a group, and their gradients, in one tensor each.

One optimizer kernel then updates a whole group, clipping is one norm, and clearing gradients is one fill; the
addresses never change, which a captured CUDA graph needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

ALIGN = 64  # elements; keeps every parameter on a 256-byte boundary for vector loads


@dataclass(frozen=True)
class RateGroup:
    """Parameters of one learning rate: ``name`` as it is shown, ``factor`` of the part's rate."""

    name: str
    factor: float = 1.0


@dataclass
class FlatRange:
    """The parameters of one rate group inside a :class:`FlatGroup`, one run of its buffer.

    ``parameter`` is what the optimizer steps, a view of the buffer with its gradient.
    """

    group: RateGroup
    parameters: list[nn.Parameter] = field(default_factory=list)
    start: int = 0
    stop: int = 0
    parameter: nn.Parameter = field(default_factory=lambda: nn.Parameter(torch.zeros(0)))


class FlatGroup:
    """Moves ``parameters`` into one float32 buffer; they stay usable as views of it.

    ``parameter`` is what the optimizer steps: shape (N,), its ``grad`` always present. Padding between
    parameters is zero and stays zero under any elementwise optimizer.

    ``rates``: the rate group of each parameter; parameters of one group are put side by side, in ``ranges``. Without
    it all are one range with the group's name.
    """

    def __init__(
        self, name: str, parameters: Sequence[nn.Parameter], rates: Sequence[RateGroup] | None = None
    ) -> None:
        self.name = name
        ranges: dict[RateGroup, FlatRange] = {}
        for parameter, rate in zip(parameters, rates or [RateGroup(name)] * len(parameters), strict=True):
            ranges.setdefault(rate, FlatRange(rate)).parameters.append(parameter)
        self.ranges = list(ranges.values())
        self.parameters: list[nn.Parameter] = []
        self.offsets: list[int] = []
        size = 0
        for row in self.ranges:
            row.start = size
            for parameter in row.parameters:
                self.parameters.append(parameter)
                self.offsets.append(size)
                size += -(-parameter.numel() // ALIGN) * ALIGN
            row.stop = size
        device = self.parameters[0].device
        data = torch.zeros(size, dtype=torch.float32, device=device)
        grad = torch.zeros_like(data)
        for parameter, offset in zip(self.parameters, self.offsets, strict=True):
            view = data[offset : offset + parameter.numel()].view(parameter.shape)
            view.copy_(parameter.detach())
            parameter.data = view
            parameter.grad = grad[offset : offset + parameter.numel()].view(parameter.shape)
        self.parameter = nn.Parameter(data)
        self.parameter.grad = grad
        for row in self.ranges:
            row.parameter = self.parameter
            if len(self.ranges) > 1:
                row.parameter = nn.Parameter(data[row.start : row.stop])
                row.parameter.grad = grad[row.start : row.stop]

    @property
    def grad(self) -> Tensor:
        """The gradients of the whole group, (N,)."""
        grad = self.parameter.grad
        if grad is None:
            raise RuntimeError(f"group {self.name}: its gradient buffer was taken away")
        return grad

    def zero_grad(self) -> None:
        """Clear the gradients in place (they are never set to None)."""
        self.grad.zero_()
