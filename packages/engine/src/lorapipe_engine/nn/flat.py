"""Flat buffers: all parameters of a group, and their gradients, in one tensor each.

One optimizer kernel then updates a whole group, clipping is one norm, and clearing gradients is one fill; the
addresses never change, which a captured CUDA graph needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ALIGN = 64  # elements; keeps every parameter on a 256-byte boundary for vector loads


class FlatGroup:
    """Moves ``parameters`` into one float32 buffer; they stay usable as views of it.

    ``parameter`` is what the optimizer steps: shape (N,), its ``grad`` always present. Padding between
    parameters is zero and stays zero under any elementwise optimizer.
    """

    def __init__(self, name: str, parameters: Sequence[nn.Parameter]) -> None:
        self.name = name
        self.parameters = list(parameters)
        self.offsets: list[int] = []
        size = 0
        for parameter in self.parameters:
            self.offsets.append(size)
            size += -(-parameter.numel() // ALIGN) * ALIGN
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
