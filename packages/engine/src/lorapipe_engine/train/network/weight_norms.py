"""``scale_weight_norms``: keep every module's change under a limit, so that none of them burns the picture.

After an update, with n = ‖alpha / rank · up · down‖ (Frobenius) and the limit M, both factors of a module are
multiplied by √(M / n) where n > M (max-norm regularisation; sd-scripts' rule and figures).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.nn.base import Adapter
from lorapipe_engine.nn.lora import Lora

TAGS = ("max_norm/keys_scaled", "norm/avg_key_norm", "max_norm/max_key_norm")


class NormLimit:
    """The limit for a network's adapters. Modules of one shape are worked on together, and nothing waits for the
    device.

    Raises ConfigError for a limit that is not above 0 or adapters that are no LoRA.
    """

    def __init__(self, adapters: Mapping[str, Adapter], limit: float) -> None:
        if limit <= 0:
            raise ConfigError(f"scale_weight_norms: {limit:g} is not above 0; usual are 0.9 to 1")
        self.limit = limit
        self.count = len(adapters)
        self._batches: dict[tuple[torch.Size, torch.Size, float], list[Lora]] = {}
        for name, adapter in adapters.items():
            if not isinstance(adapter, Lora):
                raise ConfigError(f"scale_weight_norms: works on LoRA modules only, and {name} is none")
            key = (adapter.lora_up.shape, adapter.lora_down.shape, adapter.alpha / adapter.rank)
            self._batches.setdefault(key, []).append(adapter)

    @torch.no_grad()
    def apply(self) -> Tensor:
        """Scale what is over the limit; the figures named in TAGS, (3,): modules scaled, mean and highest norm."""
        norms = torch.cat([self._limit(rows, key[2]) for key, rows in self._batches.items()])
        kept = norms.clamp(max=self.limit)
        return torch.stack([(norms > self.limit).sum().float(), kept.mean(), kept.max()])

    def _limit(self, rows: list[Lora], scale: float) -> Tensor:
        """Scale the modules of one shape; their norms before, (N,)."""
        ups, downs = [row.lora_up.data for row in rows], [row.lora_down.data for row in rows]
        up, down = torch.stack(ups), torch.stack(downs)  # (N, out, r, ...), (N, r, in, ...)
        norms = _norms(up, down, scale)
        factor = (self.limit / norms.clamp(min=self.limit)).sqrt()
        torch._foreach_copy_(ups, list((up * _broadcast(factor, up)).unbind()))
        torch._foreach_copy_(downs, list((down * _broadcast(factor, down)).unbind()))
        return norms


def change_norms(rows: Sequence[Lora]) -> Tensor:
    """Frobenius norms of the changes of modules of one shape and strength, (N,)."""
    up, down = (
        torch.stack([row.lora_up.data for row in rows]),
        torch.stack([row.lora_down.data for row in rows]),
    )
    return _norms(up, down, rows[0].alpha / rows[0].rank)


def _norms(up: Tensor, down: Tensor, scale: float) -> Tensor:
    """‖scale · UD‖ of (N, out, r, ...) and (N, r, in, ...), by ‖UD‖² = Σ (UᵀU) ∘ (DDᵀ): two r x r matrices in place of
    one as large as the layer."""
    flat_up, flat_down = up.flatten(2), down.flatten(2)
    product = (flat_up.mT @ flat_up) * (flat_down @ flat_down.mT)
    return product.sum(dim=(1, 2)).clamp(min=0).sqrt() * abs(scale)


def _broadcast(factor: Tensor, like: Tensor) -> Tensor:
    return factor.view(-1, *[1] * (like.dim() - 1))
