"""LoHa (FedPara, arXiv:2108.06098; LyCORIS' file layout): ΔW = alpha / rank · (w1_a · w1_b) ∘ (w2_a · w2_b)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorapipe_engine.nn.base import Dropouts, Options, Size
from lorapipe_engine.nn.change import apply_weight, kept_rows, layer_shape, parameter
from lorapipe_engine.nn.factored import SCALAR, Factored
from lorapipe_engine.nn.options import flag


class Loha(Factored):
    """``y = W x + multiplier · ΔW x``.

    ``w1_a``, ``w2_a`` (out, r) and ``w1_b``, ``w2_b`` (r, in·k·k); with Tucker cores (``use_tucker``, kernels above
    1x1) ``t1``, ``t2`` (r, r, k, k), the a's (r, out) and the b's (r, in). ``w2_a`` starts at zero.

    The change has rank r² at most, as up (out, r²) · down (r², in): the row-wise product of the a's times the
    column-wise product of the b's. Where that is the smaller work it is computed so, else as a dense weight.
    """

    faster: ClassVar[frozenset[str]] = frozenset({"w1_a", "w2_a"})
    needs: ClassVar[frozenset[str]] = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
    reads: ClassVar[frozenset[str]] = Factored.reads | {"hada_t1", "hada_t2"}
    scales: ClassVar[tuple[str, ...]] = ("w1_a",)
    drops: ClassVar[frozenset[str]] = frozenset({"rank", "module"})
    arguments: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        **Factored.arguments,
        "use_tucker": flag,
        "use_cp": flag,
    }

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
            own = {"w1_b": right, "w2_b": right, "t1": core, "t2": core, "w1_a": left, "w2_a": left}
        else:
            right = (r, inputs * _area(kernel))
            own = {"w1_b": right, "w2_b": right, "w1_a": (out, r), "w2_a": (out, r)}
        return {**own, **cls.extra_shapes(layer, options)}

    @classmethod
    def options_in(cls, tensors: Mapping[str, Tensor]) -> Options:
        return {"use_tucker": "hada_t1" in tensors, **cls.extra_options(tensors)}

    def __init__(self, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> None:
        super().__init__(base)
        self.rank, self.alpha, self.dropouts = size.rank, size.alpha or float(size.rank), dropouts
        self.options = options
        shape = layer_shape(base)
        for role, own in self.shapes(shape, size, options).items():
            self.register_parameter(role, parameter(own, self.weight.device))
        self.add_extras()
        self.is_tucker = _is_tucker(shape, options)
        self.is_short = not self.is_tucker and 2 * self.rank**2 <= min(shape[0], self.w1_b.shape[1])
        if self.weight.device.type != "meta":
            deviations = {"w2_a": 0.1} if self.has("scalar") else {}
            deviations |= {"w1_b": 1.0, "w2_b": 1.0, "w1_a": 0.1, "t1": 0.1, "t2": 0.1}
            for role, deviation in deviations.items():
                if self.has(role):
                    nn.init.normal_(getattr(self, role), std=deviation)

    def inner(self, x: Tensor, strength: float) -> Tensor:
        scale = self.factor * (strength * self.alpha / self.rank)
        if not self.is_short:
            weight = self._dropped(self._product()) * scale
            return apply_weight(self.base, x, weight.to(x.dtype))
        up = self._dropped((self.w1_a[:, :, None] * self.w2_a[:, None, :]).flatten(1)) * scale
        down = (self.w1_b[:, None, :] * self.w2_b[None, :, :]).flatten(0, 1)
        kernel = self.weight.shape[1:]
        hidden = apply_weight(self.base, x, down.view(-1, *kernel).to(x.dtype))
        if isinstance(self.base, nn.Conv2d):
            return F.conv2d(hidden, up[:, :, None, None].to(x.dtype))
        return F.linear(hidden, up.to(x.dtype))

    def short_rank(self) -> int:
        return self.rank**2 if self.is_short and not self.dropouts.any else 0

    @classmethod
    def short_form(cls, rows: Sequence[Self], values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        like = rows[0]
        up = torch.einsum("nor,nos->nors", values["w1_a"] * (like.alpha / like.rank), values["w2_a"])
        down = torch.einsum("nri,nsi->nrsi", values["w1_b"], values["w2_b"])
        if like.has(SCALAR):
            up = up * values[SCALAR].view(-1, 1, 1, 1)
        return down.flatten(1, 2), up.flatten(2)

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

    def inner_delta(self) -> Tensor:
        return self._product() * (self.factor * (self.alpha / self.rank))

    @staticmethod
    def suffix(role: str) -> str:
        return f"hada_{role}"


def _area(kernel: list[int]) -> int:
    return kernel[0] * kernel[1] if kernel else 1


def _is_tucker(layer: tuple[int, ...], options: Options) -> bool:
    return bool(options.get("use_tucker") or options.get("use_cp")) and _area(list(layer[2:])) > 1
