"""LoRA on linear and convolution layers (Hu et al. 2021, arXiv:2106.09685; kohya's file layout)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorapipe_engine.nn.base import NO_DROPOUT, Dropouts, Options, Size, is_low_rank
from lorapipe_engine.nn.change import kept_ranks, layer_shape, parameter
from lorapipe_engine.nn.factored import EPSILON, SCALAR, Factored
from lorapipe_engine.nn.magnitudes import squares_of_sum
from lorapipe_engine.nn.options import flag
from lorapipe_engine.nn.quantize import is_quantized


class Lora(Factored):
    """``y = W x + multiplier · (alpha / rank) · up(down(x))``.

    For a linear layer ``lora_down`` is (rank, in) and ``lora_up`` (out, rank). For a convolution ``lora_down``
    is (rank, in, k, k) with the layer's stride and padding and ``lora_up`` (out, rank, 1, 1). ``lora_up`` starts
    at zero, so a new network changes nothing.
    """

    faster: ClassVar[frozenset[str]] = frozenset({"lora_up"})
    needs: ClassVar[frozenset[str]] = frozenset({"lora_down.weight", "lora_up.weight"})
    drops: ClassVar[frozenset[str]] = frozenset({"element", "rank", "module"})
    low_rank: ClassVar[bool] = True
    reads: ClassVar[frozenset[str]] = Factored.reads | {"lora_mid.weight"}
    scales: ClassVar[tuple[str, ...]] = ("lora_up",)
    arguments: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        **Factored.arguments,
        "use_tucker": flag,
        "use_cp": flag,
    }

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        dropouts: Dropouts = NO_DROPOUT,
        options: Options | None = None,
    ) -> None:
        super().__init__(base)
        self.rank = rank
        self.alpha = alpha or float(rank)
        self.dropouts = dropouts
        self.options = options or {}
        if not isinstance(base, nn.Linear | nn.Conv2d):
            raise TypeError(f"no LoRA for a {type(base).__name__}")
        shapes = Lora.shapes(tuple(base.weight.shape), Size(rank, alpha), self.options)
        device = self.weight.device
        self.lora_down = nn.Parameter(torch.empty(shapes["lora_down"], device=device, dtype=torch.float32))
        self.lora_up = nn.Parameter(torch.zeros(shapes["lora_up"], device=device, dtype=torch.float32))
        if device.type != "meta":
            nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))
        # Looked at in every pass of every layer, so it is a number.
        out, into = base.weight.shape[:2]
        self._wide_above = _wide_above(out, into, rank) if self._may_be_wide else math.inf

    @classmethod
    def create(cls, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> Self:
        plain = tuple(cls.shapes(layer_shape(base), size, options)) == ("lora_down", "lora_up")
        kind: type[Lora] = cls if plain or cls is not Lora else DressedLora
        return kind(base, size.rank, size.alpha, dropouts, options)  # type: ignore[return-value]

    @classmethod
    def shapes(cls, layer: tuple[int, ...], size: Size, options: Options) -> dict[str, tuple[int, ...]]:
        ones = (1,) * (len(layer) - 2)
        up = (layer[0], size.rank, *ones)
        if _is_tucker(layer, options):
            core = (size.rank, size.rank, *layer[2:])
            own = {"lora_down": (size.rank, layer[1], *ones), "lora_mid": core, "lora_up": up}
        else:
            own = {"lora_down": (size.rank, *layer[1:]), "lora_up": up}
        return {**own, **cls.extra_shapes(layer, options)}

    @classmethod
    def options_in(cls, tensors: Mapping[str, Tensor]) -> Options:
        return {"use_tucker": "lora_mid.weight" in tensors, **cls.extra_options(tensors)}

    @staticmethod
    def suffix(role: str) -> str:
        return f"{role}.weight"

    def forward(self, x: Tensor) -> Tensor:
        """Works on what the base module takes: (..., in) or (B, in, H, W)."""
        if self._is_wide(x):
            return self._with_changed_weight(x)
        out: Tensor = self.base(x)
        hidden, scale = self._hidden(x)
        return self._add(out, hidden, self.multiplier * scale)

    def _is_wide(self, x: Tensor) -> bool:
        """Whether one product with W + ΔW costs less than three, forward and backward, and rounds nothing away."""
        if x.numel() <= self._wide_above or x.device.type != "cpu" or (self.training and self.dropouts.any):
            return False
        return x.dtype == torch.float32 == self.weight.dtype

    def _with_changed_weight(self, x: Tensor) -> Tensor:
        weight = torch.addmm(
            self.weight, self.lora_up, self.lora_down, alpha=self.multiplier * self.alpha / self.rank
        )
        return F.linear(x, weight, self.bias)

    def inner(self, x: Tensor, strength: float) -> Tensor:
        hidden, scale = self._hidden(x)
        up = self.lora_up * (self.factor * (strength * scale))
        return self._project(hidden, up.to(x.dtype), first=False)

    def _hidden(self, x: Tensor) -> tuple[Tensor, float]:
        """down(x) with the dropouts, and what up of it is multiplied with."""
        p = self.dropouts
        hidden = self._lowered(x)
        scale = self.alpha / self.rank
        if self.training and p.element:
            hidden = F.dropout(hidden, p.element)
        if self.training and p.rank:
            hidden, share = _drop_ranks(hidden, p, self._rank_axis)
            scale /= share
        if self.training and p.module:
            # Times zero instead of a branch in Python: nothing waits for the device, and a graph can hold it.
            hidden = hidden * (torch.rand((), device=x.device) >= p.module).to(x.dtype)
        return hidden, scale

    def _lowered(self, x: Tensor) -> Tensor:
        return self._project(x, self.lora_down.to(x.dtype), first=True)

    def _add(self, out: Tensor, hidden: Tensor, scale: float) -> Tensor:
        """``out + scale · up(hidden)``, in one product where rows lie as one matrix, which rounds once."""
        if out.dtype != hidden.dtype:
            return out + self._project(hidden * scale, self.lora_up.to(hidden.dtype), first=False)
        if not isinstance(self.base, nn.Conv2d):
            up = self.lora_up.to(hidden.dtype)
            rows = torch.addmm(out.reshape(-1, len(up)), hidden.reshape(-1, up.shape[1]), up.mT, alpha=scale)
            return rows.view_as(out)
        # The scale goes to the factor, which is small.
        up = (self.lora_up * scale).to(hidden.dtype)
        if not (_has_rows(out) and _has_rows(hidden)):
            return out + F.conv2d(hidden, up)
        rows, of_rank = (part.permute(0, 2, 3, 1).reshape(-1, part.shape[1]) for part in (out, hidden))
        added = torch.addmm(rows, of_rank, up.flatten(1).mT)
        return added.view(len(out), *out.shape[2:], -1).permute(0, 3, 1, 2)

    def inner_delta(self) -> Tensor:
        product = self.lora_up.flatten(1) @ self.lora_down.flatten(1)
        return product.reshape(self.weight.shape) * (self.alpha / self.rank)

    def scale_(self, factor: Tensor) -> None:
        root = factor.sqrt()
        self.lora_up.data.mul_(root)
        self.lora_down.data.mul_(root)

    def change_norm(self) -> Tensor:
        return self.change_norms([self])[0]

    @classmethod
    def change_norms(cls, rows: Sequence[Self]) -> Tensor:
        up, down = (
            torch.stack([getattr(row, role).data for row in rows]) for role in ("lora_up", "lora_down")
        )
        return _norms(up, down, rows[0].alpha / rows[0].rank)

    @classmethod
    def limit_(cls, rows: Sequence[Self], limit: float) -> Tensor:
        ups, downs = [row.lora_up.data for row in rows], [row.lora_down.data for row in rows]
        up, down = torch.stack(ups), torch.stack(downs)  # (N, out, r, ...), (N, r, in, ...)
        norms = _norms(up, down, rows[0].alpha / rows[0].rank)
        factor = (limit / norms.clamp(min=limit)).sqrt()
        torch._foreach_copy_(ups, list((up * _broadcast(factor, up)).unbind()))
        torch._foreach_copy_(downs, list((down * _broadcast(factor, down)).unbind()))
        return norms

    @property
    def _may_be_wide(self) -> bool:
        return type(self.base) is nn.Linear and is_low_rank(self)

    @property
    def _rank_axis(self) -> int:
        return 1 if isinstance(self.base, nn.Conv2d) else -1

    def _project(self, x: Tensor, weight: Tensor, *, first: bool) -> Tensor:
        conv = self.base
        if not isinstance(conv, nn.Conv2d):
            return F.linear(x, weight)
        if not first:
            return F.conv2d(x, weight)
        return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation)


def _wide_above(out: int, into: int, rank: int) -> float:
    """Above how many values of an input a product with W + ΔW costs less than three, forward and backward.

    A row costs in · out for the gradient of W + ΔW, and 3 · r · (in + out) with the factors; W + ΔW itself costs
    3 · r · in · out. So in a layer of 64 by 64 a rank above 10 is wide. On a GPU fused blocks do better than either.
    """
    saved = 3 * rank * (into + out) - into * out
    return into * (3 * rank * into * out) / saved if saved > 0 else math.inf


class DressedLora(Lora):
    """LoRA with a Tucker core ``lora_mid`` (r, r, k, k) between a 1x1 ``lora_down`` and ``lora_up``, with a learned
    factor, or under magnitudes. The core has the layer's stride and padding.
    """

    lora_mid: nn.Parameter

    def __init__(
        self, base: nn.Module, rank: int, alpha: float, dropouts: Dropouts, options: Options
    ) -> None:
        super().__init__(base, rank, alpha, dropouts, options)
        shapes = self.shapes(tuple(self.weight.shape), Size(rank, alpha), options)
        drawn = []
        if "lora_mid" in shapes:
            self.lora_mid = parameter(shapes["lora_mid"], self.weight.device)
            drawn.append(self.lora_mid)
        self.add_extras()
        if self.has("scalar"):
            drawn.append(self.lora_up)
        if self.weight.device.type != "meta":
            for own in drawn:
                nn.init.kaiming_uniform_(own, a=math.sqrt(5))

    def short_rank(self) -> int:
        return 0 if self.dropouts.any or self.has("lora_mid") else self.rank

    @classmethod
    def short_form(cls, rows: Sequence[Self], values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        up = values["lora_up"].flatten(2) * (rows[0].alpha / rows[0].rank)
        if rows[0].has(SCALAR):
            up = up * values[SCALAR].view(-1, 1, 1)
        return values["lora_down"].flatten(2), up

    def plain_factors(self) -> tuple[str, str] | None:
        return None if self.has(SCALAR) else ("lora_down", "lora_up")

    forward = Factored.forward
    scale_ = Factored.scale_
    change_norm = Factored.change_norm

    def _lowered(self, x: Tensor) -> Tensor:
        conv = self.base
        if not (self.has("lora_mid") and isinstance(conv, nn.Conv2d)):
            return super()._lowered(x)
        hidden = F.conv2d(x, self.lora_down.to(x.dtype))
        return F.conv2d(hidden, self.lora_mid.to(x.dtype), None, conv.stride, conv.padding, conv.dilation)

    def inner_delta(self) -> Tensor:
        if not self.has("lora_mid"):
            return super().inner_delta() * self.factor
        up, down = self.lora_up.flatten(1), self.lora_down.flatten(1)
        whole = torch.einsum("oa,abkl,bi->oikl", up, self.lora_mid, down)
        return whole * (self.factor * (self.alpha / self.rank))

    def _norm_of_sum(self) -> Tensor:
        if self.has("lora_mid") or is_quantized(self.base):
            return super()._norm_of_sum()
        up, down, scale = (
            self.lora_up.flatten(1),
            self.lora_down.flatten(1),
            self.factor * (self.alpha / self.rank),
        )
        squares = squares_of_sum(
            self.weight.detach(), self.base_squares(), up, down, scale, by_output=self._by_output
        )
        return squares.sqrt() + EPSILON

    @classmethod
    def change_norms(cls, rows: Sequence[Self]) -> Tensor:
        return torch.stack([row.change_norm() for row in rows])

    @classmethod
    def limit_(cls, rows: Sequence[Self], limit: float) -> Tensor:
        return super(Lora, cls).limit_(rows, limit)


def _has_rows(pictures: Tensor) -> bool:
    """Whether the channels of each pixel lie side by side in memory, as in the fused blocks."""
    return pictures.is_contiguous(memory_format=torch.channels_last)


def _drop_ranks(hidden: Tensor, dropouts: Dropouts, axis: int) -> tuple[Tensor, float]:
    """Zero whole rank channels, drawn per sample; what is left is yet to be divided by the number. ``hidden`` is
    (B, ..., r) or (B, r, H, W)."""
    shape = [1] * hidden.dim()
    shape[0], shape[axis] = hidden.shape[0], hidden.shape[axis]
    kept, share = kept_ranks(shape, axis, dropouts, hidden.device)
    return hidden * kept.to(hidden.dtype), share


def _norms(up: Tensor, down: Tensor, scale: float) -> Tensor:
    """‖scale · UD‖ of (N, out, r, ...) and (N, r, in, ...), by ‖UD‖² = Σ (UᵀU) ∘ (DDᵀ): two r x r matrices in place of
    one as large as the layer."""
    flat_up, flat_down = up.flatten(2), down.flatten(2)
    product = (flat_up.mT @ flat_up) * (flat_down @ flat_down.mT)
    return product.sum(dim=(1, 2)).clamp(min=0).sqrt() * abs(scale)


def _broadcast(factor: Tensor, like: Tensor) -> Tensor:
    return factor.view(-1, *[1] * (like.dim() - 1))


def _is_tucker(layer: tuple[int, ...], options: Options) -> bool:
    return bool(options.get("use_tucker") or options.get("use_cp")) and math.prod(layer[2:]) > 1
