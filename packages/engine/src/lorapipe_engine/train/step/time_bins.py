"""Where on the way from picture to noise the loss is: means by timestep, added up inside the step.

The sums lie in one tensor whose address never changes, so a captured step adds to them; they are read every
:data:`EVERY` steps alone, so that no step waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorapipe_engine.train.processes import Processes

EVERY = 100  # steps that a figure is the mean of
COUNT = 10
TAG = "loss/timesteps/"


class TimeBins:
    """Sums of losses before their weights, and their number, for each tenth of the times 0..``end``: (2, 10)."""

    def __init__(self, end: float, device: torch.device) -> None:
        self.end = end
        self.sums = torch.zeros(2, COUNT, device=device)
        self._numbers = torch.arange(COUNT, device=device)

    def add(self, times: Tensor, losses: Tensor) -> None:
        """Add the losses (B,) of a batch at its times (B,)."""
        places = (times.float() * (COUNT / self.end)).long().clamp(0, COUNT - 1)
        rows = (places[:, None] == self._numbers).to(losses.dtype)  # (B, 10)
        self.sums += torch.stack([(losses.detach()[:, None] * rows).sum(dim=0), rows.sum(dim=0)])

    def take(self, processes: Processes) -> dict[str, float]:
        """The mean of each tenth that was met, of all processes, by TensorBoard tag; begins anew."""
        whole = self.sums.clone()
        processes.add_up([whole])
        self.sums.zero_()
        width = self.end / COUNT
        return {
            f"{TAG}{width * place:03.0f}-{width * (place + 1) - 1:03.0f}": total / count
            for place, (total, count) in enumerate(zip(*whole.tolist(), strict=True))
            if count
        }

    def restore(self, sums: Sequence[Sequence[float]]) -> None:
        """Go on from the sums of a state; none are there in one that was written without."""
        if [len(row) for row in sums] == [COUNT] * 2:
            self.sums.copy_(torch.tensor(sums))
