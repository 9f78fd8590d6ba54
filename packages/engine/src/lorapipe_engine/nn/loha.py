"""LoHa (FedPara, arXiv:2108.06098; LyCORIS' file layout): ΔW = alpha / rank · (w1_a · w1_b) ∘ (w2_a · w2_b)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorapipe_engine.nn.base import Adapter, Dropouts, Options, Size
from lorapipe_engine.nn.change import apply_weight, kept_rows, layer_shape, parameter
from lorapipe_engine.nn.options import flag


class Loha(Adapter):
    """``y = W x + multiplier · ΔW x``.

    ``w1_a``, ``w2_a`` (out, r) and ``w1_b``, ``w2_b`` (r, in·k·k); with Tucker cores (``use_tucker``, kernels above
    1x1) ``t1``, ``t2`` (r, r, k, k), the a's (r, out) and the b's (r, in). ``w2_a`` starts at zero.

    The change has rank r² at most, as up (out, r²) · down (r², in): the row-wise product of the a's times the
    column-wise product of the b's. Where that is the smaller work it is computed so, else as a dense weight.
    """

    faster: ClassVar[frozenset[str]] = frozenset({"w1_a", "w2_a"})
    needs: ClassVar[frozenset[str]] = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
    reads: ClassVar[frozenset[str]] = frozenset({"hada_t1", "hada_t2"})
    drops: ClassVar[frozenset[str]] = frozenset({"rank", "module"})
    arguments: ClassVar[Mapping[str, Callable[[str], Any]]] = {"use_tucker": flag, "use_cp": flag}

    w1_a: nn.Parameter
    w1_b: nn.Parameter
    w2_a: nn.Parameter
    w2_b: nn.Parameter
    t1: nn.Parameter
    t2: nn.Parameter

    @classmethod
    def create(cls, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> Self:
        return cls(base, size, dropouts, options)

    @classmethod
    def shapes(cls, layer: tuple[int, ...], size: Size, options: Options) -> dict[str, tuple[int, ...]]:
        out, inputs, *kernel = layer
        r = size.rank
        if _is_tucker(layer, options):
            left, right, core = (r, out), (r, inputs), (r, r, *kernel)
            return {"w1_b": right, "w2_b": right, "t1": core, "t2": core, "w1_a": left, "w2_a": left}
        right = (r, inputs * _area(kernel))
        return {"w1_b": right, "w2_b": right, "w1_a": (out, r), "w2_a": (out, r)}

    @classmethod
    def options_in(cls, tensors: Mapping[str, Tensor]) -> Options:
        return {"use_tucker": "hada_t1" in tensors}

    def __init__(self, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> None:
        super().__init__(base)
        self.rank, self.alpha, self.dropouts = size.rank, size.alpha or float(size.rank), dropouts
        self.options = options
        shape = layer_shape(base)
        for role, own in self.shapes(shape, size, options).items():
            self.register_parameter(role, parameter(own, self.weight.device))
        self.is_tucker = _is_tucker(shape, options)
        self.is_short = not self.is_tucker and 2 * self.rank**2 <= min(shape[0], self.w1_b.shape[1])
        if self.weight.device.type != "meta":
            deviations = {"w1_b": 1.0, "w2_b": 1.0, "w1_a": 0.1, "t1": 0.1, "t2": 0.1}
            for role, deviation in deviations.items():
                if role in dict(self.named_parameters()):
                    nn.init.normal_(getattr(self, role), std=deviation)

    def forward(self, x: Tensor) -> Tensor:
        """Works on what the base module takes: (..., in) or (B, in, H, W)."""
        out: Tensor = self.base(x)
        scale = self.multiplier * self.alpha / self.rank
        if not self.is_short:
            weight = self._dropped(self._product()) * scale
            return out + apply_weight(self.base, x, weight.to(x.dtype))
        up = self._dropped((self.w1_a[:, :, None] * self.w2_a[:, None, :]).flatten(1)) * scale
        down = (self.w1_b[:, None, :] * self.w2_b[None, :, :]).flatten(0, 1)
        kernel = self.weight.shape[1:]
        hidden = apply_weight(self.base, x, down.view(-1, *kernel).to(x.dtype))
        if isinstance(self.base, nn.Conv2d):
            return out + F.conv2d(hidden, up[:, :, None, None].to(x.dtype))
        return out + F.linear(hidden, up.to(x.dtype))

    def _dropped(self, rows: Tensor) -> Tensor:
        if not (self.training and self.dropouts.any):
            return rows
        kept = kept_rows(len(rows), self.dropouts, rows.device)
        return rows * kept.view(-1, *[1] * (rows.dim() - 1))

    def _product(self) -> Tensor:
        """(w1_a · w1_b) ∘ (w2_a · w2_b) in the weight's shape, float32."""
        if self.is_tucker:
            sides = [
                torch.einsum("abkl,ao,bi->oikl", core, left, right)
                for core, left, right in ((self.t1, self.w1_a, self.w1_b), (self.t2, self.w2_a, self.w2_b))
            ]
            return sides[0] * sides[1]
        return ((self.w1_a @ self.w1_b) * (self.w2_a @ self.w2_b)).view(self.weight.shape)

    def delta(self) -> Tensor:
        return self._product() * (self.alpha / self.rank)

    def file_tensors(self) -> dict[str, Tensor]:
        own = {f"hada_{role}": getattr(self, role) for role in self.roles}
        return {**own, "alpha": torch.tensor(self.alpha, dtype=torch.float32)}

    def scale_(self, factor: Tensor) -> None:
        self.w1_a.data.mul_(factor)


def _area(kernel: list[int]) -> int:
    return kernel[0] * kernel[1] if kernel else 1


def _is_tucker(layer: tuple[int, ...], options: Options) -> bool:
    return bool(options.get("use_tucker") or options.get("use_cp")) and _area(list(layer[2:])) > 1
