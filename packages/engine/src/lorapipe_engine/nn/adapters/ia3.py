"""(IA)³ (arXiv:2205.05638; LyCORIS' file layout): the weight scaled along one axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lorapipe_engine.nn.base import Adapter, Dropouts, Options, Size
from lorapipe_engine.nn.change import frozen_weight, layer_shape, parameter
from lorapipe_engine.nn.options import flag


class Ia3(Adapter):
    """``y = W x · (1 + multiplier · w) + b``, or with ``train_on_input`` ``y = W (x · (1 + multiplier · w)) + b``.

    ``w``: (out,) or (in,), starts at zero. There is no rank and no alpha. An input scaled in the dtype of x is rounded
    once more than the base's own.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"weight", "on_input"})
    drops: ClassVar[frozenset[str]] = frozenset({"module"})
    arguments: ClassVar[Mapping[str, Callable[[str], Any]]] = {"train_on_input": flag}

    w: nn.Parameter

    @classmethod
    def create(cls, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> Self:  # noqa: ARG003
        return cls(base, dropouts, options)

    @classmethod
    def shapes(cls, layer: tuple[int, ...], size: Size, options: Options) -> dict[str, tuple[int, ...]]:  # noqa: ARG003
        return {"w": (layer[1] if options.get("train_on_input") else layer[0],)}

    @classmethod
    def options_in(cls, tensors: Mapping[str, Tensor]) -> Options:
        return {"train_on_input": bool(tensors["on_input"])}

    def __init__(self, base: nn.Module, dropouts: Dropouts, options: Options) -> None:
        super().__init__(base)
        self.dropouts = dropouts
        self.options = options
        self.on_input = bool(options.get("train_on_input"))
        shape = self.shapes(layer_shape(base), Size(0, 0.0), options)["w"]
        self.w = parameter(shape, self.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """Works on what the base module takes: (..., in) or (B, in, H, W)."""
        change = self._along(self.w, 1 if isinstance(self.base, nn.Conv2d) else -1, x.dim()) * self.multiplier
        if self.training and self.dropouts.module:
            change = change * (torch.rand((), device=x.device) >= self.dropouts.module)
        if self.on_input:
            out: Tensor = self.base(x * (1 + change).to(x.dtype))
            return out
        out = self.base(x)
        bias = self.bias
        if bias is None:
            return out + out * change.to(out.dtype)
        shown = self._along(bias, 1 if isinstance(self.base, nn.Conv2d) else -1, x.dim())
        return out + (out - shown) * change.to(out.dtype)

    def delta(self) -> Tensor:
        weight = frozen_weight(self.base)
        return weight * self._along(self.w, 1 if self.on_input else 0, weight.dim())

    def has_short_form(self) -> bool:
        return not self.dropouts.any

    @classmethod
    def short_form(cls, rows: Sequence[Self], values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Factors of no rank: there is nothing but the ratio."""
        (out, into), w = rows[0].weight.shape[:2], values["w"]
        return w.new_zeros(len(rows), 0, into), w.new_zeros(len(rows), out, 0)

    def short_axis(self) -> int | None:
        return 1 if self.on_input else 0

    @classmethod
    def short_ratio(
        cls,
        rows: Sequence[Self],  # noqa: ARG003
        values: Mapping[str, Tensor],
        down: Tensor,  # noqa: ARG003
        up: Tensor,  # noqa: ARG003
    ) -> Tensor:
        return 1 + values["w"]

    @staticmethod
    def _along(values: Tensor, axis: int, dims: int) -> Tensor:
        shape = [1] * dims
        shape[axis] = len(values)
        return values.view(shape)

    def file_tensors(self) -> dict[str, Tensor]:
        # Convolutions store (1, c, 1, 1), as LyCORIS does.
        stored = self.w.view(1, -1, 1, 1) if isinstance(self.base, nn.Conv2d) else self.w
        return {"weight": stored, "on_input": torch.tensor(int(self.on_input))}

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        self.w.copy_(tensors["weight"].reshape(self.w.shape))

    def scale_(self, factor: Tensor) -> None:
        self.w.data.mul_(factor)
