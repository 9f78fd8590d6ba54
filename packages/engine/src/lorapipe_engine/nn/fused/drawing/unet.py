"""A UNet that is drawn with: fused blocks without a backward pass, networks in slots, the text told once.

The steps are those of :mod:`.unet`, and so are the kernels. Nothing is kept for a backward pass, what is written may
take the place of what was read, and the keys and values of a text are made once for all evaluations of a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorapipe_engine.nn import kernels
from lorapipe_engine.nn.fused.drawing.layers import DrawnPart, Forward, linear, norm_linear, product
from lorapipe_engine.nn.fused.drawing.slots import BesideSlot, ConvSlot, Slot
from lorapipe_engine.nn.fused.drawing.text import DrawnText
from lorapipe_engine.nn.fused.pictures import as_pictures, as_rows
from lorapipe_engine.nn.fused.time_shifts import TimeShifts
from lorapipe_engine.nn.fused.unet import attend, attend_context
from lorapipe_engine.nn.kernels import GEGLU


class Drawing(DrawnPart):
    """A frozen UNet. ``text``: the text encoders that are given with it, which are active, or not, for themselves."""

    def __init__(self, unet: nn.Module, encoders: Iterable[nn.Module] = ()) -> None:
        super().__init__()
        self.text = DrawnText(encoders)
        self._blocks: list[
            tuple[Any, Slot]
        ] = []  # transformer blocks, with the slot that makes keys of a text
        self._told: dict[int, tuple[Tensor, list[Tensor]]] = {}
        resnets = []
        for module in list(unet.modules()):
            name = type(module).__name__
            if isinstance(module, nn.Conv2d):
                _order(module)
            if name == "BasicTransformerBlock" and _plain_block(module):
                self._fuse_block(module)
            elif _is_resnet(module) and module.time_emb_proj is not None:
                resnets.append(module)
            elif name == "Transformer2DModel" and module.is_input_continuous:
                self._fuse_transformer(module)
            elif name in ("Downsample2D", "Upsample2D") and isinstance(
                conv := getattr(module, "conv", None), nn.Conv2d
            ):
                self._replace(conv, partial(_sampled, self._slot(ConvSlot(conv))))
        if resnets:
            shifts = TimeShifts(resnets)
            for module in resnets:
                self._fuse_resnet(module, shifts)
        _fuse_end(unet, self._replace)

    # ---------------------------------------------------------------- text

    @torch.inference_mode(False)
    @torch.no_grad()
    def tell(self, states: Tensor) -> None:
        """Make keys and values of text states (B, L, C), for evaluations that are given this very tensor.

        Told again, what is made takes the same places.
        """
        rows = states.reshape(-1, states.shape[-1])
        made = [linear(rows, keys) for _, keys in self._blocks]
        _, kept = self._told.get(id(states), (states, []))
        if kept:
            torch._foreach_copy_(kept, made)
        else:
            self._told[id(states)] = states, made

    def forget(self) -> None:
        """Drop what was made of texts."""
        self._told.clear()

    def _keys(self, place: int, states: Tensor) -> Tensor:
        """Rows [key | value] of a text for a block."""
        known = self._told.get(id(states))
        if known is not None and known[0] is states:
            return known[1][place]
        return linear(states.reshape(-1, states.shape[-1]), self._blocks[place][1])

    # ---------------------------------------------------------------- blocks

    def _fuse_block(self, block: Any) -> None:
        attn1, attn2, ff = block.attn1, block.attn2, block.ff.net
        slots = [
            self._slot(Slot(layers))
            for layers in (
                [attn1.to_q, attn1.to_k, attn1.to_v],
                [attn1.to_out[0]],
                [attn2.to_q],
                [attn2.to_k, attn2.to_v],
                [attn2.to_out[0]],
                [ff[0].proj],
                [ff[2]],
            )
        ]
        keys = partial(self._keys, len(self._blocks))
        self._blocks.append((block, slots.pop(3)))
        self._replace(block, partial(_block, block, slots, keys))

    def _fuse_transformer(self, model: Any) -> None:
        into, out_of = self._slot(Slot([model.proj_in])), self._slot(Slot([model.proj_out]))
        self._replace(model, partial(_transformer, model, into, out_of))

    def _fuse_resnet(self, block: Any, shifts: TimeShifts) -> None:
        convs = self._slot(ConvSlot(block.conv1)), self._slot(ConvSlot(block.conv2))
        short = None if block.conv_shortcut is None else self._slot(Slot([block.conv_shortcut]))
        time = self._slot(BesideSlot(block.time_emb_proj))

        def forward(x: Tensor, temb: Tensor, *_args: Any, **_more: Any) -> Tensor:
            shift = shifts.of(block, temb)
            more = time.added(F.silu(temb)) if time.rank else None
            return _resnet(block, convs, short, x, shift if more is None else shift + more)

        self._replace(block, forward)


def fuse_decoder(vae: Any) -> None:
    """Give a VAE's decoder channels-last weights and fused residual blocks, in place, for drawing alone."""

    def replace(module: Any, forward: Forward) -> None:
        module.forward = forward

    for module in vae.decoder.modules():
        if isinstance(module, nn.Conv2d):
            _order(module)
        elif _is_resnet(module, norms=("default", "group")) and module.time_emb_proj is None:
            replace(module, partial(_timeless, module))
    _fuse_end(vae.decoder, replace)


def _is_resnet(block: Any, norms: tuple[str, ...] = ("default",)) -> bool:
    """Whether a module is a residual block of diffusers, of the usual make. ``norms``: how it may take a time; a block
    without one is called "group" in the upper half of a decoder, which makes no difference."""
    return (
        type(block).__name__ == "ResnetBlock2D"
        and block.time_embedding_norm in norms
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1.0
        and block.dropout.p == 0
        and type(block.nonlinearity).__name__ == "SiLU"
        and isinstance(block.conv1, nn.Conv2d)
        and block.conv1.padding_mode == block.conv2.padding_mode == "zeros"
        and (block.conv_shortcut is None or block.conv_shortcut.kernel_size == (1, 1))
    )


def _plain_block(block: Any) -> bool:
    attn1, attn2 = block.attn1, block.attn2
    return bool(
        attn2 is not None
        and block.norm_type == "layer_norm"
        and type(block.ff.net[0]).__name__ == "GEGLU"
        and not block.only_cross_attention
        and attn1.norm_q is None
        and attn2.norm_q is None
    )


def _order(conv: nn.Conv2d) -> None:
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)


def _fuse_end(model: Any, replace: Callable[[Any, Forward], None]) -> None:
    """The last norm with its activation."""
    norm, act = getattr(model, "conv_norm_out", None), getattr(model, "conv_act", None)
    if isinstance(norm, nn.GroupNorm) and isinstance(act, nn.SiLU):
        replace(norm, partial(_group_norm, norm=norm, silu=True))
        replace(act, lambda x: x)


# ------------------------------------------------------------------------------------------ parts


def _group_norm(x: Tensor, norm: nn.GroupNorm, *, silu: bool, shift: Tensor | None = None) -> Tensor:
    """The norm of x + shift (B, C, H, W), through SiLU where asked, in channels-last order."""
    rows = as_rows(x).view(len(x), -1, x.shape[1])
    out, _, _ = kernels.group_norm(rows, norm.num_groups, norm.weight, norm.bias, norm.eps, shift, silu)
    return as_pictures(out, x)


def _convolution(
    x: Tensor, conv: nn.Conv2d, weight: Tensor, bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    """``weight`` in the place of the convolution's own, plus ``bias`` (C,) and ``residual``."""
    out = F.conv2d(x, weight, None, conv.stride, conv.padding)
    out = out.contiguous(memory_format=torch.channels_last)
    kernels.add_bias(as_rows(out), bias, None if residual is None else as_rows(residual))
    return out


def _lifted(x: Tensor, slot: ConvSlot, bias: Tensor | None, residual: Tensor | None = None) -> Tensor:
    """A slot's convolution of x (B, C, H, W), plus ``bias`` (C,) and ``residual``."""
    conv = slot.layers[0]
    if not slot.rank:
        return _convolution(x, conv, slot.left, bias, residual)
    both = F.conv2d(x, slot.left, None, conv.stride, conv.padding)
    rows = as_rows(both.contiguous(memory_format=torch.channels_last))
    out, _ = kernels.lift(rows, slot.up.mT, None if residual is None else as_rows(residual))
    if bias is not None:
        kernels.add_bias(out, bias, None)
    return as_pictures(out, both)


# ------------------------------------------------------------------------------------------ blocks


def _block(
    block: Any,
    slots: list[Slot],
    keys: Callable[[Tensor], Tensor],
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,  # noqa: ARG001
    encoder_hidden_states: Tensor | None = None,
    *_args: Any,
    **_more: Any,
) -> Tensor:
    """``hidden_states`` (B, N, C), ``encoder_hidden_states`` (B, M, C2)."""
    batch, shape = len(hidden_states), hidden_states.shape
    assert encoder_hidden_states is not None  # a block with attn2 has a context
    qkv, out1, query, out2, first, second = slots
    x = hidden_states.reshape(-1, shape[-1])
    q, k, v = torch.split(norm_linear(x, block.norm1, qkv), qkv.outs, dim=1)
    x = linear(attend(q, k, v, batch, block.attn1.heads), out1, x)
    q = norm_linear(x, block.norm2, query)
    x = linear(attend_context(q, keys(encoder_hidden_states), batch, block.attn2.heads), out2, x)
    inner = norm_linear(x, block.norm3, first)
    active = x.new_empty(len(x), second.width)
    kernels.activate(GEGLU, inner, active)
    return linear(active, second, x).view(shape)


def _transformer(
    model: Any,
    into: Slot,
    out_of: Slot,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    *_args: Any,
    return_dict: bool = True,
    **_more: Any,
) -> Any:
    """``hidden_states`` (B, C, H, W)."""
    normed = _group_norm(hidden_states, model.norm, silu=False)
    x = linear(as_rows(normed), into)
    x = x.view(len(hidden_states), -1, x.shape[1])
    for block in model.transformer_blocks:
        x = block(x, None, encoder_hidden_states)
    out = linear(x.reshape(-1, x.shape[-1]), out_of, as_rows(hidden_states))
    sample = as_pictures(out, hidden_states)
    if not return_dict:
        return (sample,)
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=sample)


def _resnet(
    block: Any, convs: tuple[ConvSlot, ConvSlot], short: Slot | None, x: Tensor, shift: Tensor
) -> Tensor:
    """``x`` (B, C, H, W); ``shift`` (B, out): what the time adds, and the bias of the first convolution."""
    y = _lifted(_group_norm(x, block.norm1, silu=True), convs[0], None)
    y = _group_norm(y, block.norm2, silu=True, shift=shift)
    if short is not None:
        x = as_pictures(linear(as_rows(x), short), x)
    return _lifted(y, convs[1], block.conv2.bias, x)


def _timeless(block: Any, x: Tensor, *_args: Any, **_more: Any) -> Tensor:
    """A residual block without a time, of a VAE; ``x`` (B, C, H, W)."""
    conv1, conv2, short = block.conv1, block.conv2, block.conv_shortcut
    y = _convolution(_group_norm(x, block.norm1, silu=True), conv1, conv1.weight, conv1.bias, None)
    y = _group_norm(y, block.norm2, silu=True)
    if short is not None:
        x = as_pictures(product(as_rows(x), short.weight.flatten(1), short.bias), x)
    return _convolution(y, conv2, conv2.weight, conv2.bias, x)


def _sampled(slot: ConvSlot, x: Tensor) -> Tensor:
    """The convolution of a block that makes pictures larger or smaller."""
    return _lifted(x, slot, slot.layers[0].bias)
