"""The average of a network while it trains, beside it: a moving one, or that of a power function.

With x_t the network after step t and e_1 = x_1:

    moving, decay B:  e_t = B e_(t-1) + (1 - B) x_t
    power, width S:   the same with B_t = (1 - 1/t)^(g+1); so the k-th of N weighs (k^(g+1) - (k-1)^(g+1)) / N^(g+1)

g is the positive root of g^3 + 7g^2 + (16 - S^-2)g + 12 - S^-2 = 0 (Karras et al. 2024, arXiv:2312.02696), where S is
the average's width over the length of the run. What is averaged are the trained values; ``lora-merge --average`` has
the same weights for the changes of saved networks, which is the same for algorithms whose change is linear in what is
trained, and nearly so for the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.nn.attach import Network


class NetworkAverage:
    """The average of a network's trained values, in float32. ``decay`` is B, ``width`` S; one of both is given."""

    def __init__(self, network: Network, *, decay: float | None = None, width: float | None = None) -> None:
        self.network = network
        self.decay = decay
        self._power = 0.0 if width is None else exponent_of(width) + 1
        self._values = {part: group.parameter.detach().clone() for part, group in network.groups.items()}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Take the network after a step (from 1) into the average."""
        kept = self.decay if self.decay is not None else (1 - 1 / step) ** self._power
        for part, values in self._values.items():
            current = self.network.groups[part].parameter
            if step == 1:
                values.copy_(current)
            else:
                values.lerp_(current, 1 - kept)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the average in the network's place for a while."""
        trained = {part: group.parameter.detach().clone() for part, group in self.network.groups.items()}
        self._put(self._values)
        try:
            yield
        finally:
            self._put(trained)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for part, group in self.network.groups.items():
            group.parameter.copy_(values[part])

    def state(self) -> dict[str, Tensor]:
        """Its values, by part."""
        return self._values

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave. Raises ConfigError where it is another network's."""
        for part, values in self._values.items():
            if part not in tensors or tensors[part].shape != values.shape:
                raise ConfigError(f"the state has no average of this network's {part}")
            values.copy_(tensors[part])


def exponent_of(width: float) -> float:
    """The exponent g of the power function whose relative width is S, above 0 and below 12^(-1/2)."""
    inverse = width**-2
    low, high = 0.0, max(1.0, 2 * inverse)
    for _ in range(200):  # the cubic rises from below 0 at g = 0
        middle = (low + high) / 2
        value = ((middle + 7) * middle + 16 - inverse) * middle + 12 - inverse
        low, high = (middle, high) if value < 0 else (low, middle)
    return (low + high) / 2
