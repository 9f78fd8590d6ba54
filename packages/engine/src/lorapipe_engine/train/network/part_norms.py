"""How far each part of the network has come and how fast it moves: what tells an overcooked text encoder from an
overcooked UNet.

``norm/change/NAME`` is the mean Frobenius norm of a module's change, such as alpha / rank · up · down.
``norm/step/NAME`` is how far a step moved a value (root mean square): the rate at which the part really learns,
whatever the optimizer does with its learning rate. NAME is ``unet`` or ``textencoder``, for two of them
``textencoder 1`` and ``textencoder 2``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from lorapipe_engine.models.families import is_text
from lorapipe_engine.nn.attach import Network
from lorapipe_engine.nn.base import Adapter, alike

EVERY = 10  # steps
SAMPLE = 1_000_000  # values of a part that are compared before and after a step
TOGETHER = 32  # modules that are alike and measured at once


class PartNorms:
    """Measures at the first and every tenth step; nothing waits for the device in the others."""

    def __init__(self, network: Network) -> None:
        self._network = network
        several = sum(is_text(part) for part in network.groups) > 1
        self.names = {
            part: f"textencoder{' ' + part.removeprefix('te') if several else ''}" if is_text(part) else part
            for part in network.groups
        }
        self._rows = {part: list(_batches(network, part)) for part in network.groups}
        self._before: dict[str, Tensor] | None = None

    def before(self, step: int) -> None:
        """Call it before step ``step`` (from 0)."""
        self._before = None
        if step % EVERY == 0:
            self._before = {part: self._sample(part).clone() for part in self._network.groups}

    @torch.no_grad()
    def after(self) -> dict[str, float]:
        """Call it after the step: the figures by their tags, where the step is one that is measured."""
        if self._before is None:
            return {}
        moved = [(self._sample(part) - old).square().mean().sqrt() for part, old in self._before.items()]
        norms = torch.stack([*moved, *(self._change(part) for part in self._before)]).tolist()
        names = [self.names[part] for part in self._before]
        steps = {f"norm/step/{name}": value for name, value in zip(names, norms, strict=False)}
        return {**steps, **{f"norm/change/{n}": v for n, v in zip(names, norms[len(names) :], strict=True)}}

    def _sample(self, part: str) -> Tensor:
        values = self._network.groups[part].parameter.detach()
        return values[:: -(-len(values) // SAMPLE)]

    def _change(self, part: str) -> Tensor:
        norms = [type(rows[0]).change_norms(rows) for rows in self._rows[part]]
        return torch.cat(norms).mean()


def _batches(network: Network, part: str) -> Iterator[list[Adapter]]:
    """The adapters of a part that are alike, a few at a time."""
    own = [adapter for name, adapter in network.adapters.items() if network.parts[name] == part]
    for rows in alike(own):
        for start in range(0, len(rows), TOGETHER):
            yield rows[start : start + TOGETHER]
