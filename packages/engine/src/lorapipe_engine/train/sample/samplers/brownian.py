"""Noise of SDE samplers: increments of a Brownian path over sigma, one path for each picture, seeded by it."""

from __future__ import annotations

from collections.abc import Sequence
from warnings import catch_warnings, simplefilter

import torch
from torch import Tensor

from lorapipe_engine.errors import MissingExtra
from lorapipe_engine.nn.sending import sent
from lorapipe_engine.train.sample.samplers.methods import Noise


def brownian_noise(x: Tensor, low: float, high: float, seeds: Sequence[int]) -> Noise:
    """Unit noise for steps between sigmas in ``low``..``high``, in the shape of ``x`` (B, C, h, w).

    Made on the CPU from each picture's seed alone, so it depends neither on the batch nor on the device, and steps of
    other widths follow the same path. One seed is for all pictures together. Raises MissingExtra without torchsde.
    """
    try:
        import torchsde
    except ImportError:
        raise MissingExtra("SDE samplers need torchsde: pip install torchsde, or take DPM++ 2M") from None
    rows = x if len(seeds) == 1 else x[:1]
    start = torch.zeros(rows.shape, dtype=torch.float32)
    trees = [torchsde.BrownianTree(low, start, high, entropy=seed) for seed in seeds]

    def noise(sigma: float, following: float) -> Tensor:
        with catch_warnings():
            # torchsde rounds the ends of its path, and warns of a last sigma that lies a rounding beyond.
            simplefilter("ignore", UserWarning)
            change = torch.cat([tree(following, sigma) for tree in trees])
        unit: Tensor = change * -((sigma - following) ** -0.5)
        return sent(unit.to(x.dtype), x.device)

    return noise
