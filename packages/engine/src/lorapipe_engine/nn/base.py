"""What every adapter module shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Dropouts:
    """The three dropouts of a LoRA branch, each a probability in 0..1 and active in training only.

    ``element``: of single values of the rank activation (``network_dropout``); ``rank``: of whole rank
    channels per sample; ``module``: of the whole branch, one draw a forward.
    """

    element: float = 0.0
    rank: float = 0.0
    module: float = 0.0


NO_DROPOUT = Dropouts()


class Adapter(nn.Module):
    """A frozen module with a trainable change beside it; stands in the model's tree in the module's place.

    Subclasses add parameters in float32 and compute ``base(x) + multiplier · change(x)`` in the dtype of ``x``.
    ``multiplier`` is the strength of the change; 0 gives the base module's own result.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.multiplier = 1.0

    @property
    def weight(self) -> Tensor:
        """The frozen weight: some callers look at a layer's dtype or device through it."""
        return cast(Tensor, self.base.weight)

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias, if any."""
        return cast("Tensor | None", self.base.bias)

    def delta(self) -> Tensor:
        """The dense change of the weight at strength 1, in float32 and the weight's shape."""
        raise NotImplementedError

    def file_tensors(self) -> dict[str, Tensor]:
        """The tensors as they stand in a file, by the part of the key after the module's name."""
        raise NotImplementedError
