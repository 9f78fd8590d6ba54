"""Whole differences: of a layer's weight and bias (``diff``, ``diff_b``), of a norm's (``w_norm``, ``b_norm``).

LyCORIS' file layout. There is no rank and no alpha.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorapipe_engine.nn.base import Adapter, Dropouts, Options, Size
from lorapipe_engine.nn.change import apply_weight, kept_rows, layer_shape, parameter

_HALF = (torch.float16, torch.bfloat16)


class _Difference(Adapter):
    """What both have in common: parameters that are added, and start at zero."""

    def __init__(self, base: nn.Module, shape: tuple[int, ...], dropouts: Dropouts, options: Options) -> None:
        super().__init__(base)
        self.dropouts = dropouts
        self.options = {"bias": self.bias is not None, **options}
        for role, own in self.shapes(shape, Size(0, 0.0), self.options).items():
            self.register_parameter(role, parameter(own, self.weight.device))

    @classmethod
    def options_in(cls, tensors: Mapping[str, Tensor]) -> Options:
        return {"bias": any(suffix in tensors for suffix in ("diff_b", "b_norm"))}

    def file_tensors(self) -> dict[str, Tensor]:
        return {role: getattr(self, role) for role in self.roles}

    def scale_(self, factor: Tensor) -> None:
        for role in self.roles:
            getattr(self, role).data.mul_(factor)


class Full(_Difference):
    """``y = (W + multiplier · diff) x + b + multiplier · diff_b``, as a product of its own beside the frozen one: a sum
    in bf16 would lose small differences. ``diff_b`` only where the layer has a bias."""

    needs: ClassVar[frozenset[str]] = frozenset({"diff"})
    reads: ClassVar[frozenset[str]] = frozenset({"diff_b"})
    drops: ClassVar[frozenset[str]] = frozenset({"rank", "module"})

    diff: nn.Parameter
    diff_b: nn.Parameter

    @classmethod
    def create(cls, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> Self:  # noqa: ARG003
        return cls(base, layer_shape(base), dropouts, options)

    @classmethod
    def shapes(cls, layer: tuple[int, ...], size: Size, options: Options) -> dict[str, tuple[int, ...]]:  # noqa: ARG003
        # Whether a layer has a bias does not show in its shape: a count takes it for granted.
        bias = {"diff_b": layer[:1]} if options.get("bias", True) else {}
        return {"diff": tuple(layer), **bias}

    def forward(self, x: Tensor) -> Tensor:
        """Works on what the base module takes: (..., in) or (B, in, H, W)."""
        out: Tensor = self.base(x)
        diff: Tensor = self.diff
        bias: Tensor | None = self.diff_b if "diff_b" in self._parameters else None
        if self.multiplier != 1:  # a pass over all of the values, and one more backward
            diff, bias = diff * self.multiplier, None if bias is None else bias * self.multiplier
        if self.training and self.dropouts.any:
            kept = kept_rows(len(diff), self.dropouts, diff.device)
            diff = diff * kept.view(-1, *[1] * (diff.dim() - 1))
            bias = None if bias is None else bias * kept
        diff, bias = diff.to(x.dtype), None if bias is None else bias.to(x.dtype)
        if bias is None and not isinstance(self.base, nn.Conv2d) and out.dtype == x.dtype:
            # One product on top of the other, which rounds once.
            rows = torch.addmm(out.reshape(-1, len(diff)), x.reshape(-1, diff.shape[1]), diff.mT)
            return rows.view_as(out)
        return out + apply_weight(self.base, x, diff, bias)

    def delta(self) -> Tensor:
        return self.diff

    def bias_delta(self) -> Tensor | None:
        return self.diff_b if "diff_b" in self._parameters else None


class Norm(_Difference):
    """A layer norm or group norm with ``w_norm`` added to its weight and ``b_norm`` to its bias, both (c,)."""

    needs: ClassVar[frozenset[str]] = frozenset({"w_norm"})
    reads: ClassVar[frozenset[str]] = frozenset({"b_norm"})
    drops: ClassVar[frozenset[str]] = frozenset({"module"})

    w_norm: nn.Parameter
    b_norm: nn.Parameter

    @classmethod
    def create(cls, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> Self:  # noqa: ARG003
        if not isinstance(base, nn.LayerNorm | nn.GroupNorm) or base.weight is None:
            raise TypeError(f"{type(base).__name__} is no norm with a weight")
        return cls(base, tuple(base.weight.shape), dropouts, options)

    @classmethod
    def shapes(cls, layer: tuple[int, ...], size: Size, options: Options) -> dict[str, tuple[int, ...]]:  # noqa: ARG003
        return {"w_norm": tuple(layer), **({"b_norm": tuple(layer)} if options.get("bias", True) else {})}

    def forward(self, x: Tensor) -> Tensor:
        """Works on what the norm takes: (..., c), or (B, c, ...) for a group norm."""
        if self.multiplier == 0:
            out: Tensor = self.base(x)
            return out
        if x.dtype in _HALF:
            return self.on_normed(self._normed(x, None, None))
        weight, bias = self._changed()
        return self._normed(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    def on_normed(self, hat: Tensor) -> Tensor:
        """The result from rows or pictures that are normed and no more, in their dtype. Weight and bias are added up in
        float32: what half precision can hold of a weight would round small changes away."""
        weight, bias = self._changed()
        shape = [-1, *[1] * (hat.dim() - 2)] if isinstance(self.base, nn.GroupNorm) else [-1]
        out = hat * weight.view(shape)
        return (out if bias is None else out + bias.view(shape)).to(hat.dtype)

    def _changed(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with their changes, in the parameters' dtype; no bias where there is none."""
        strength: Tensor | float = self.multiplier
        if self.training and self.dropouts.module:
            strength = strength * (torch.rand((), device=self.w_norm.device) >= self.dropouts.module)
        weight = self.weight.to(self.w_norm.dtype) + self.w_norm * strength
        if "b_norm" not in self._parameters:
            return weight, None if self.bias is None else self.bias.to(self.w_norm.dtype)
        bias = self.b_norm * strength
        return weight, bias if self.bias is None else self.bias.to(bias.dtype) + bias

    def _normed(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        base = self.base
        if isinstance(base, nn.GroupNorm):
            # torch's backward on a processor crashes on some channels-last inputs; on a card it copies them itself.
            return F.group_norm(x.contiguous(), base.num_groups, weight, bias, base.eps)
        assert isinstance(base, nn.LayerNorm)
        return F.layer_norm(x, base.normalized_shape, weight, bias, base.eps)

    def delta(self) -> Tensor:
        return self.w_norm

    def bias_delta(self) -> Tensor | None:
        return self.b_norm if "b_norm" in self._parameters else None
