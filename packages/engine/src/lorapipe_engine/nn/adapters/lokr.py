"""LoKr (KronA, arXiv:2212.10650; LyCORIS' file layout): ΔW = alpha / rank · w1 ⊗ w2."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.nn.base import Dropouts, Options, Size
from lorapipe_engine.nn.change import apply_weight, kept_rows, layer_shape, parameter
from lorapipe_engine.nn.factored import SCALAR, Factored
from lorapipe_engine.nn.options import factor as read_factor
from lorapipe_engine.nn.options import flag

Shape = tuple[int, ...]


class Lokr(Factored):
    """``y = W x + multiplier · ΔW x`` with ΔW[o1·n + o2, i1·m + i2] = s · w1[o1, i1] · w2[o2, i2].

    ``factor`` splits both sides of the layer (see :func:`split`). ``w2`` is stored as ``w2_a`` (o2, r) · ``w2_b``
    (r, i2·k·k) where r is under half its longer side, unless ``full_matrix``; with ``use_tucker`` and a kernel above
    1x1 as ``t2`` (r, r, k, k), ``w2_a`` (r, o2), ``w2_b`` (r, i2). ``w1`` is stored as two factors only with
    ``decompose_both``. s = alpha / r; where both are stored whole s = 1 whatever alpha says. ``w2`` or ``w2_b`` starts
    at zero.
    """

    faster: ClassVar[frozenset[str]] = frozenset({"w1", "w1_a", "w2_a"})
    needs: ClassVar[frozenset[str]] = frozenset()
    reads: ClassVar[frozenset[str]] = Factored.reads | {
        f"lokr_{role}" for role in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")
    }
    scales: ClassVar[tuple[str, ...]] = ("w1", "w1_a")
    drops: ClassVar[frozenset[str]] = frozenset({"rank", "module"})
    arguments: ClassVar[Mapping[str, Callable[[str], Any]]] = {
        **Factored.arguments,
        "factor": read_factor,
        **dict.fromkeys(
            ("full_matrix", "decompose_both", "unbalanced_factorization", "use_tucker", "use_cp"), flag
        ),
    }

    w1: nn.Parameter
    w1_a: nn.Parameter
    w1_b: nn.Parameter
    w2: nn.Parameter
    w2_a: nn.Parameter
    w2_b: nn.Parameter
    t2: nn.Parameter

    @classmethod
    def create(cls, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> Self:
        return cls(base, size, dropouts, options)

    @classmethod
    def shapes(cls, layer: Shape, size: Size, options: Options) -> dict[str, Shape]:
        if "shapes" in options:  # as a file has them
            return {**options["shapes"], **cls.extra_shapes(layer, options)}
        r, kernel = size.rank, layer[2:]
        (o1, o2), (i1, i2) = (split(side, options.get("factor", -1)) for side in layer[:2])
        if options.get("unbalanced_factorization"):
            o1, o2 = o2, o1
        shapes: dict[str, Shape] = {}
        if options.get("decompose_both") and r < max(o1, i1) / 2:
            shapes |= {"w1_b": (r, i1), "w1_a": (o1, r)}
        else:
            shapes["w1"] = (o1, i1)
        if options.get("full_matrix") or r >= max(o2, i2) / 2:
            shapes["w2"] = (o2, i2, *kernel)
        elif (options.get("use_tucker") or options.get("use_cp")) and math.prod(kernel) > 1:
            shapes |= {"w2_b": (r, i2), "t2": (r, r, *kernel), "w2_a": (r, o2)}
        else:
            shapes |= {"w2_b": (r, i2 * math.prod(kernel)), "w2_a": (o2, r)}
        return {**shapes, **cls.extra_shapes(layer, options)}

    @classmethod
    def options_in(cls, tensors: Mapping[str, Tensor]) -> Options:
        roles = ("w1_b", "w1_a", "w1", "w2", "w2_b", "t2", "w2_a")
        shapes = {role: tuple(tensors[f"lokr_{role}"].shape) for role in roles if f"lokr_{role}" in tensors}
        return {"shapes": shapes, **cls.extra_options(tensors)}

    def __init__(self, base: nn.Module, size: Size, dropouts: Dropouts, options: Options) -> None:
        super().__init__(base)
        self.rank, self.alpha, self.dropouts = size.rank, size.alpha or float(size.rank), dropouts
        self.options = options
        extras = self.extra_shapes(layer_shape(base), options)
        own_shapes = self.shapes(layer_shape(base), size, options)
        self._shapes = {role: shape for role, shape in own_shapes.items() if role not in extras}
        _check(self._shapes, layer_shape(base))
        for role, own in self._shapes.items():
            self.register_parameter(role, parameter(own, self.weight.device))
        self.add_extras()
        at_zero = () if self.has("scalar") else ("w2", "w2_b")
        if self.weight.device.type != "meta":
            for role in self._shapes:
                if role not in at_zero:
                    nn.init.kaiming_uniform_(getattr(self, role), a=math.sqrt(5))

    @property
    def strength(self) -> float:
        """What w1 ⊗ w2 is multiplied with."""
        whole = {"w1", "w2"} <= self._shapes.keys()
        return 1.0 if whole else self.alpha / self.rank

    def inner(self, x: Tensor, strength: float) -> Tensor:
        """w2's factors first, then w1."""
        first = self._first() * (self.factor * (strength * self.strength))
        first = first.to(x.dtype)
        is_conv = isinstance(self.base, nn.Conv2d)
        change = self._on_pictures(x, first) if is_conv else self._on_rows(x, first)
        if self.training and self.dropouts.any:
            kept = kept_rows(self.weight.shape[0], self.dropouts, x.device).to(x.dtype)
            change = change * (kept[:, None, None] if is_conv else kept)
        return change

    def _on_rows(self, x: Tensor, first: Tensor) -> Tensor:
        rows = x.reshape(*x.shape[:-1], first.shape[1], -1)  # (..., i1, i2)
        if "w2" in self._shapes:
            hidden = F.linear(rows, self.w2.to(x.dtype))
        else:
            hidden = F.linear(F.linear(rows, self.w2_b.to(x.dtype)), self.w2_a.to(x.dtype))
        return (first @ hidden).flatten(-2)  # (..., o1, o2)

    def _on_pictures(self, x: Tensor, first: Tensor) -> Tensor:
        parts = x.reshape(len(x) * first.shape[1], -1, *x.shape[2:])  # (B·i1, i2, H, W)
        second = self._second(tuple(self.weight.shape[2:])).to(x.dtype)
        hidden = apply_weight(self.base, parts, second)
        hidden = hidden.reshape(len(x), -1, *hidden.shape[1:])  # (B, i1, o2, H', W')
        return torch.einsum("pi,bidhw->bpdhw", first, hidden).flatten(1, 2)

    def short_rank(self) -> int:
        """Of (w1 ⊗ w2_a) · (1 ⊗ w2_b): i1 · r."""
        if self.dropouts.any or "w2_a" not in self._shapes or "t2" in self._shapes:
            return 0
        weight = self.weight.flatten(1)
        rank = self._inputs * self._shapes["w2_b"][0]
        return rank if rank * sum(weight.shape) <= weight.numel() else 0

    @classmethod
    def short_form(cls, rows: Sequence[Self], values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        like, left, right = rows[0], values["w2_a"], values["w2_b"]
        first = values["w1"] if "w1" in values else values["w1_a"] @ values["w1_b"]  # (N, o1, i1)
        if like.has(SCALAR):
            first = first * values[SCALAR].view(-1, 1, 1)
        count, each = like._inputs, torch.eye(like._inputs, device=first.device)
        up = torch.einsum("npi,ndr->npdir", first * like.strength, left)
        down = torch.einsum("ij,nrm->nirjm", each, right)
        return down.reshape(len(rows), count * right.shape[1], -1), up.reshape(
            len(rows), -1, count * left.shape[2]
        )

    @property
    def _inputs(self) -> int:
        """i1, the columns of w1."""
        return self._shapes["w1" if "w1" in self._shapes else "w1_b"][1]

    def _first(self) -> Tensor:
        """w1, (o1, i1)."""
        whole: Tensor = self.w1 if "w1" in self._shapes else self.w1_a @ self.w1_b
        return whole

    def _second(self, kernel: Shape) -> Tensor:
        """w2, (o2, i2) or (o2, i2, k, k)."""
        if "w2" in self._shapes:
            whole: Tensor = self.w2
            return whole.view(*whole.shape[:2], *kernel)
        if "t2" in self._shapes:
            return torch.einsum("abkl,ao,bi->oikl", self.t2, self.w2_a, self.w2_b)
        return (self.w2_a @ self.w2_b).view(len(self.w2_a), -1, *kernel)

    def inner_delta(self) -> Tensor:
        first, second = self._first(), self._second(tuple(self.weight.shape[2:]))
        whole = torch.einsum("pi,dj...->pdij...", first, second)
        return whole.reshape(self.weight.shape) * (self.factor * self.strength)

    @staticmethod
    def suffix(role: str) -> str:
        return f"lokr_{role}"

    def change_norm(self) -> Tensor:
        """‖w1 ⊗ w2‖ = ‖w1‖ · ‖w2‖: the dense change is not needed."""
        second = self._second(tuple(self.weight.shape[2:]))
        product = self._first().square().sum() * second.square().sum()
        return (product.sqrt() * (self.factor * self.strength)).abs()


def _check(shapes: Mapping[str, Shape], layer: Shape) -> None:
    """Raise ConfigError for factors, such as a file's, that do not make up the layer."""
    core = "t2" in shapes
    left = {
        role: shapes[role][core and role == "w2_a"] for role in ("w1", "w1_a", "w2", "w2_a") if role in shapes
    }
    right = {role: math.prod(shapes[role][1:]) for role in ("w1", "w1_b", "w2", "w2_b") if role in shapes}
    kernel = math.prod(shapes["t2"][2:]) if core else 1
    if (math.prod(left.values()), math.prod(right.values()) * kernel) != (layer[0], math.prod(layer[1:])):
        raise ConfigError(f"lokr: factors of the shapes {dict(shapes)} do not fit a layer of {layer}")


def split(size: int, factor: int) -> tuple[int, int]:
    """Two whole numbers (m, n), m <= n, with m · n = size: m is ``factor`` where that divides, else the largest divisor
    that is not above it; -1: the largest one up to √size.
    """
    if factor > 0 and size % factor == 0:
        m, n = sorted((factor, size // factor))
        return m, n
    most = math.isqrt(size) if factor < 0 else min(factor, math.isqrt(size))
    m = next(m for m in range(most, 0, -1) if size % m == 0)
    return m, size // m
