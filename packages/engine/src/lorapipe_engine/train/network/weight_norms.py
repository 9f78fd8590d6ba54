"""``scale_weight_norms``: keep every module's change under a limit, so that none of them burns the picture.

After an update a change of Frobenius norm n above the limit M is multiplied by M / n (max-norm regularisation;
sd-scripts' rule and figures). For LoRA both factors take √(M / n).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.nn.base import Adapter, alike

TAGS = ("max_norm/keys_scaled", "norm/avg_key_norm", "max_norm/max_key_norm")


class NormLimit:
    """The limit for a network's adapters. Modules that are alike are worked on together, and nothing waits for the
    device.

    Raises ConfigError for a limit that is not above 0.
    """

    def __init__(self, adapters: Mapping[str, Adapter], limit: float) -> None:
        if limit <= 0:
            raise ConfigError(f"scale_weight_norms: {limit:g} is not above 0; usual are 0.9 to 1")
        self.limit = limit
        self.count = len(adapters)
        self._batches = alike(adapters.values())

    @torch.no_grad()
    def apply(self) -> Tensor:
        """Scale what is over the limit; the figures named in TAGS, (3,): modules scaled, mean and highest norm."""
        norms = torch.cat([type(rows[0]).limit_(rows, self.limit) for rows in self._batches])
        kept = norms.clamp(max=self.limit)
        return torch.stack([(norms > self.limit).sum().float(), kept.mean(), kept.max()])
