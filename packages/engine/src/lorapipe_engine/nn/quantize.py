"""Frozen layers whose weights are kept in 8 or 4 bits, and computed with in the precision of what comes in.

For the backward pass a layer keeps nothing wider than its weight: what it computed with is made again. A new form is a
class and a row in :data:`FORMS`.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

# Small layers at the ends of the models, whose dtype says in which precision the model computes.
_UNQUANTIZED = frozenset({"conv_in", "conv_out", "time_embedding", "add_embedding", "class_embedding"})


class Form(Protocol):
    """A way to keep weights."""

    def pack(self, layer: QuantizedLinear | QuantizedConv) -> None:
        """Put the layer's weight into this form, in place; its shape can still be asked for."""

    def unpack(self, layer: QuantizedLinear | QuantizedConv, dtype: torch.dtype) -> Tensor:
        """The weight in ``dtype``, (out, in) or (out, in, h, w)."""


def quantize(root: nn.Module, form: str) -> int:
    """Quantize the weights of all linear layers and convolutions in ``root`` to a form of :data:`FORMS`, in place.
    Returns how many there were.

    Biases, norms, embeddings, and the layers at both ends of a UNet stay as they are.
    """
    chosen = FORMS[form]()
    count = 0
    for path, module in root.named_modules():
        if path.partition(".")[0] in _UNQUANTIZED or type(module) not in _KINDS:
            continue
        module.__class__ = _KINDS[type(module)]
        layer = cast("QuantizedLinear | QuantizedConv", module)
        layer.form = chosen
        chosen.pack(layer)
        count += 1
    return count


def is_quantized(root: nn.Module) -> bool:
    """Whether any layer in ``root`` has a quantized weight."""
    return any(isinstance(module, QuantizedLinear | QuantizedConv) for module in root.modules())


# -------------------------------------------------------------------------------- forms


class Float8:
    """float8 e4m3, as sd-scripts' ``fp8_base``: three bits of mantissa, errors of up to 6 % of each value."""

    def pack(self, layer: QuantizedLinear | QuantizedConv) -> None:
        layer.weight.data = layer.weight.data.to(torch.float8_e4m3fn)

    def unpack(self, layer: QuantizedLinear | QuantizedConv, dtype: torch.dtype) -> Tensor:
        return layer.weight.to(dtype)


class Int8:
    """Whole numbers of -127 to 127 and a factor for each row: errors of up to 0.4 % of the row's largest value."""

    def pack(self, layer: QuantizedLinear | QuantizedConv) -> None:
        weight = layer.weight.data
        rows = weight.float().flatten(1)
        scale = rows.abs().amax(1).clamp_min(1e-30) / 127
        layer.weight.requires_grad_(False).data = (
            (rows / scale[:, None]).round().to(torch.int8).view_as(weight)
        )
        layer.register_buffer("scale", scale.to(weight.dtype).view(-1, *[1] * (weight.ndim - 1)), False)

    def unpack(self, layer: QuantizedLinear | QuantizedConv, dtype: torch.dtype) -> Tensor:
        return layer.weight.to(dtype) * cast(Tensor, layer.scale).to(dtype)


class NormalFloat4:
    """NF4 (QLoRA, arXiv:2305.14314): 16 levels as normal values are spread, and a factor for each 64 values."""

    def __init__(self) -> None:
        from bitsandbytes import functional

        self._library: Any = functional

    def pack(self, layer: QuantizedLinear | QuantizedConv) -> None:
        weight = layer.weight.data
        packed, state = self._library.quantize_4bit(weight.contiguous(), quant_type="nf4")
        layer.register_buffer("packed", packed, False)
        layer.register_buffer("factors", state.absmax, False)
        layer.state = state
        # Shape, dtype and device of the weight can still be asked for; its values are NaN, so that none is used.
        layer.weight.requires_grad_(False).data = torch.full_like(weight[:1, :1], torch.nan).expand_as(weight)

    def unpack(self, layer: QuantizedLinear | QuantizedConv, dtype: torch.dtype) -> Tensor:
        state = layer.state
        state.absmax = layer.factors  # which went along where the model was moved
        state.code = state.code.to(layer.weight.device)
        weight = self._library.dequantize_4bit(layer.packed, state)
        return cast(Tensor, weight).to(dtype)


FORMS: dict[str, type[Form]] = {"fp8": Float8, "int8": Int8, "nf4": NormalFloat4}

# -------------------------------------------------------------------------------- layers


class QuantizedLinear(nn.Linear):
    """A linear layer with a frozen quantized weight: (..., in) -> (..., out)."""

    form: Form
    state: Any

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        out: Tensor = _Linear.apply(input, self)  # type: ignore[no-untyped-call]
        return out


class QuantizedConv(nn.Conv2d):
    """A convolution with a frozen quantized weight: (B, in, H, W) -> (B, out, H', W')."""

    form: Form
    state: Any

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        out: Tensor = _Conv.apply(input, self)  # type: ignore[no-untyped-call]
        return out


_KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: QuantizedLinear, nn.Conv2d: QuantizedConv}


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        context.layer = layer
        return F.linear(x, layer.form.unpack(layer, x.dtype), layer.bias)

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None]:
        layer = context.layer
        return grads[0] @ layer.form.unpack(layer, grads[0].dtype), None


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, layer: QuantizedConv) -> Tensor:
        context.shape, context.layer = x.shape, layer
        weight = layer.form.unpack(layer, x.dtype)
        return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None]:
        layer = context.layer
        grad: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
            context.shape,
            layer.form.unpack(layer, grads[0].dtype),
            grads[0],
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )
        return grad, None
