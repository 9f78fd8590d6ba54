"""What LoRA, LoHa and LoKr share: a learned factor (``use_scalar``) and magnitudes (``dora_wd``) around a change that
does not depend on the weight.

DoRA (arXiv:2402.09353): V = W + ΔW and W' = V · g / ‖V‖. g, ``dora_scale`` in a file, starts as ‖W‖. ‖V‖ is taken as a
constant in the backward pass, as in the paper. At multiplier m the weight is W + m(W' - W).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lorapipe_engine.nn import kernels
from lorapipe_engine.nn.base import Adapter, Options
from lorapipe_engine.nn.change import frozen_weight, layer_shape, parameter
from lorapipe_engine.nn.magnitudes import StandIn, squares_of_sums
from lorapipe_engine.nn.options import flag

Shape = tuple[int, ...]
MAGNITUDE, SCALAR = "magnitude", "scalar"
EPSILON = torch.finfo(torch.float32).eps  # readers add it to the norm


class Factored(Adapter):
    """A change ΔW of its own, times a learned number with ``use_scalar``, under magnitudes with ``dora_wd``.

    ``scalar`` () starts at 0 while every matrix starts at random values. A file does not hold it: it is multiplied into
    the first of ``scales``. ``magnitude`` is (1, in, ...), or with ``wd_on_output`` (out, 1, ...).
    """

    arguments: ClassVar[Mapping[str, Callable[[str], Any]]] = dict.fromkeys(
        ("use_scalar", "rs_lora", "dora_wd", "wd_on_output", "wd_on_out"), flag
    )
    reads: ClassVar[frozenset[str]] = frozenset({"dora_scale"})
    scales: ClassVar[tuple[str, ...]]
    """Roles of which the first that is there takes a number that the change is multiplied with."""

    scalar: nn.Parameter
    magnitude: nn.Parameter
    _squares: tuple[object, Tensor] | None = None
    _changed: tuple[object, kernels.ChangedWeights] | None = None  # of the rows that this one is the first of

    @staticmethod
    def extra_shapes(layer: Shape, options: Options) -> dict[str, Shape]:
        """Shapes of the learned number and the magnitudes that the options ask for."""
        shapes: dict[str, Shape] = {}
        if options.get("use_scalar"):
            shapes[SCALAR] = ()
        if options.get("dora_wd"):
            axis = 0 if on_output(options) else 1
            shapes[MAGNITUDE] = tuple(side if d == axis else 1 for d, side in enumerate(layer))
        return shapes

    @staticmethod
    def extra_options(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """What a file's module shows of them."""
        scale = tensors.get("dora_scale")
        if scale is None:
            return {}
        by_input = scale.dim() > 1 and scale.shape[0] == 1 and scale.numel() == scale.shape[1]
        return {"dora_wd": True, "wd_on_output": not by_input}

    def add_extras(self) -> None:
        """Make the parameters of :meth:`extra_shapes`. Call it when ``options`` are set."""
        for role, shape in self.extra_shapes(layer_shape(self.base), self.options).items():
            self.register_parameter(role, parameter(shape, self.weight.device))
        if self.has(MAGNITUDE) and self.weight.device.type != "meta":
            with torch.no_grad():
                self.magnitude.copy_(self._norm(frozen_weight(self.base)))

    def has(self, role: str) -> bool:
        """Whether the adapter has a parameter of that role."""
        return role in self._parameters

    @property
    def factor(self) -> Tensor | float:
        """The learned number; 1 where there is none."""
        return self.scalar if self.has(SCALAR) else 1.0

    # ---------------------------------------------------------------- the change

    @abstractmethod
    def inner(self, x: Tensor, strength: float) -> Tensor:
        """``strength · ΔW x`` without base and magnitudes, with the dropouts; x as the layer takes it."""

    @abstractmethod
    def inner_delta(self) -> Tensor:
        """ΔW in float32 and the weight's shape, before magnitudes."""

    def forward(self, x: Tensor) -> Tensor:
        """Works on what the base module takes: (..., in) or (B, in, H, W)."""
        if self.has(MAGNITUDE):
            return self._decomposed(x)
        out: Tensor = self.base(x)
        return out + self.inner(x, self.multiplier)

    def delta(self) -> Tensor:
        if not self.has(MAGNITUDE):
            return self.inner_delta()
        weight, change, ratio = frozen_weight(self.base), self.inner_delta(), self._ratio()
        return change * ratio + weight * (ratio - 1)

    def _decomposed(self, x: Tensor) -> Tensor:
        ratio, axis = self._ratio(), 1 if isinstance(self.base, nn.Conv2d) else -1
        shape = [1] * x.dim()
        shape[axis] = ratio.numel()
        ratio = ratio.view(shape)
        less = (ratio - 1) * self.multiplier
        if self._by_output:
            out: Tensor = self.base(x)
            plain = out if self.bias is None else out - self.bias.view([-1 if s > 1 else 1 for s in shape])
            change = self.inner(x, self.multiplier)
            return out + (less.to(x.dtype) * plain + ratio.to(x.dtype) * change)
        change = self.inner(x * ratio.to(x.dtype), self.multiplier)
        if x.dtype not in (torch.float16, torch.bfloat16):
            scaled: Tensor = self.base(x * (1 + less).to(x.dtype))
            return scaled + change
        # 1 + less would round to 1 in these types, and the magnitudes would have no effect until they are large.
        stand_in = StandIn.apply(x, 1 + less)  # type: ignore[no-untyped-call]
        plain_out: Tensor = self.base(stand_in)
        with torch.no_grad():
            moved: Tensor = self.base(x * less.to(x.dtype))
            if self.bias is not None:
                moved = moved - self.bias.view([-1 if d == axis % x.dim() else 1 for d in range(x.dim())])
        return plain_out + (moved + change)

    def short_axis(self) -> int | None:
        if not self.has(MAGNITUDE):
            return None
        return 0 if self._by_output else 1

    @classmethod
    def short_ratio(
        cls, rows: Sequence[Self], values: Mapping[str, Tensor], down: Tensor, up: Tensor
    ) -> Tensor:
        with torch.no_grad():
            norms = cls._squares_of_sums(rows, down, up).sqrt()
        return values[MAGNITUDE].flatten(1) / (norms + EPSILON)

    @classmethod
    def _squares_of_sums(cls, rows: Sequence[Self], down: Tensor, up: Tensor) -> Tensor:
        """‖V‖² of each row, (N, out) or (N, in)."""
        first, weights = rows[0], [row.weight.detach() for row in rows]
        by_output = first._by_output
        if not kernels.can_square(weights, up):
            squares = torch.stack([row.base_squares().flatten() for row in rows])
            return squares_of_sums(weights, squares, up, down, by_output=by_output)
        places = [(weight.data_ptr(), weight.stride(0)) for weight in weights]
        if first._changed is None or first._changed[0] != places:
            first._changed = (places, kernels.changed_weights(weights, by_output=by_output))
        return kernels.squares_of_changed(first._changed[1], up, down)

    @property
    def _by_output(self) -> bool:
        return on_output(self.options)

    def _ratio(self) -> Tensor:
        """g / ‖V‖, in the shape of g."""
        with torch.no_grad():
            norm = self._norm_of_sum()
        return self.magnitude / norm

    def _norm_of_sum(self) -> Tensor:
        """‖V‖ in the shape of g. A change of factors says it without V."""
        return self._norm(frozen_weight(self.base) + self.inner_delta())

    def _norm(self, weight: Tensor) -> Tensor:
        axis = 0 if self._by_output else 1
        rest = [d for d in range(weight.dim()) if d != axis]
        norm: Tensor = torch.linalg.vector_norm(weight, dim=rest, keepdim=True)
        return norm + EPSILON

    def base_squares(self) -> Tensor:
        """‖W‖² in the shape of g, in its dtype and on its device. It is kept: the weight is frozen."""
        weight, like = self.weight, self.magnitude
        key = (weight.data_ptr(), weight._version, like.device, like.dtype)
        if self._squares is None or self._squares[0] != key:
            axis = 0 if self._by_output else 1
            wide = frozen_weight(self.base).to(like.dtype)
            rest = [d for d in range(wide.dim()) if d != axis]
            self._squares = (key, wide.square().sum(dim=rest, keepdim=True))
        return self._squares[1]

    # ---------------------------------------------------------------- files

    @staticmethod
    @abstractmethod
    def suffix(role: str) -> str:
        """What a file calls a factor."""

    def file_tensors(self) -> dict[str, Tensor]:
        own = {
            self.suffix(role): getattr(self, role)
            for role in (*self.roles, *self.frozen)
            if role not in (SCALAR, MAGNITUDE)
        }
        if self.has(SCALAR):
            own[self.suffix(self._scaled)] = getattr(self, self._scaled) * self.scalar
        if self.has(MAGNITUDE):
            own["dora_scale"] = self.magnitude
        return {**own, "alpha": torch.tensor(self.alpha, dtype=torch.float32)}

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        for role in (*self.roles, *self.frozen):
            if role == SCALAR:
                self.scalar.fill_(1.0)
            else:
                getattr(self, role).copy_(tensors["dora_scale" if role == MAGNITUDE else self.suffix(role)])

    @property
    def _scaled(self) -> str:
        return next(role for role in self.scales if self.has(role))

    def scale_(self, factor: Tensor) -> None:
        """Under magnitudes it is the inner change that is scaled, as LyCORIS does it."""
        getattr(self, self._scaled).data.mul_(factor)

    def change_norm(self) -> Tensor:
        """Under magnitudes the norm of the inner change: that is what :meth:`scale_` scales."""
        norm: Tensor = torch.linalg.vector_norm(self.inner_delta())
        return norm


def on_output(options: Options) -> bool:
    """Whether magnitudes go by outputs. By inputs is the default: the axis that programs apply right."""
    return bool(options.get("wd_on_output", options.get("wd_on_out", False)))
