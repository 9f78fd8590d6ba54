"""Which rate each parameter of the network takes: by part, by block, by LoRA+."""

from __future__ import annotations

from collections.abc import Mapping

from lorapipe_engine.models.families import is_text
from lorapipe_engine.nn.flat import RateGroup
from lorapipe_engine.train.network.arguments import NetworkArgs
from lorapipe_engine.train.network.blocks import block_of


class RateGroups:
    """The rate group of each parameter, under sd-scripts' names: "textencoder", "unet", "unet_block4", with " plus"
    for LoRA+'s. Text encoders of different rates are "textencoder 1" and "textencoder 2".
    """

    def __init__(self, args: NetworkArgs, family: str, rates: Mapping[str, float]) -> None:
        self._args = args
        self._family = family
        self._weights = args.weights_of(family)
        text = {part: rate for part, rate in rates.items() if is_text(part)}
        self._apart = len(set(text.values())) > 1

    def __call__(self, part: str, name: str, faster: bool) -> RateGroup:
        """The group of a parameter by its part, its module's name and whether LoRA+ trains it faster."""
        group, factor = part, 1.0
        if is_text(part):
            group = f"textencoder {part.removeprefix('te')}" if self._apart else "textencoder"
        elif self._weights is not None:
            block = block_of(self._family, name)
            if block is not None:
                group, factor = f"{part}_block{block}", self._weights[block]
        ratio = self._args.plus(part)
        if ratio is not None and faster:
            return RateGroup(f"{group} plus", factor * ratio)
        return RateGroup(group, factor)
