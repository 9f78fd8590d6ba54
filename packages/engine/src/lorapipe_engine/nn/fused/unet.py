"""Forwards of diffusers' blocks made of the fused steps; each takes the place of a block's own while gradients are
recorded, and while the network is off, so that the base's answer is rounded as the network's. Outside of that (drawing
samples, measuring) the block's own forward runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lorapipe_engine.nn.adapters.full import Norm
from lorapipe_engine.nn.base import Adapter, is_off
from lorapipe_engine.nn.fused import ops, pictures
from lorapipe_engine.nn.fused.layers import (
    GroupNorm,
    Layers,
    convolution,
    feed_forward,
    frozen,
    has_adapter,
    layers_of,
    linear,
    norm_linear,
    pack,
    project,
)
from lorapipe_engine.nn.fused.packed import Packed, Packs, can_pack
from lorapipe_engine.nn.fused.time_shifts import TimeShifts
from lorapipe_engine.nn.fused.trained.convolutions import (
    TrainedConvolution,
    can_convolve,
    trained_convolution,
)
from lorapipe_engine.nn.fused.trained.differences import TrainedDifference, can_differ, different
from lorapipe_engine.nn.fused.trained.norms import TrainedNorm
from lorapipe_engine.nn.kernels import GEGLU, GELU, QUICK_GELU, few_keys

Forward = Callable[..., Any]

# cuDNN's attention is the faster one on Hopper and later; each of them handles what the one before cannot.
HOPPER = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)


def fuse(unet: nn.Module, others: Sequence[nn.Module] = ()) -> Packs:
    """Pack the LoRA of a UNet and of ``others`` (text encoders) and give their blocks the fused forwards, in place.

    Layers that cannot be packed run their own forward inside a fused block (see :mod:`.layers`). Blocks of another
    make, or without an adapter, stay as they are. Packed layers are trained at a multiplier of 1.
    """
    packs: list[Packed] = []
    residual: list[Any] = []
    for module in list(unet.modules()):
        name = type(module).__name__
        if isinstance(
            module, nn.Conv2d
        ):  # the weights alone: the networks' parameters are views that must stay
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        if name == "BasicTransformerBlock":
            packs += _fuse_block(module)
        elif name == "ResnetBlock2D" and _is_known_resnet(module):
            residual.append(module)
        elif name == "Transformer2DModel" and _plain_transformer(module):
            packs += _fuse_transformer(module)
    _fuse_residual(residual, _adapter_in(unet))
    for root in others:
        for module in root.modules():
            if type(module).__name__ == "CLIPEncoderLayer":
                packs += _fuse_text(module)
    for layer in _layers([unet, *others]):
        packs += _fuse_layer(layer)
    modules = [module for root in (unet, *others) for module in root.modules()]
    norms = [_fuse_norm(module) for module in modules if isinstance(module, Norm)]
    differences = [_fuse_difference(module) for module in modules if can_differ(module)]
    convolutions = [_fuse_convolution(module) for module in modules if can_convolve(module)]
    return Packs(packs, norms, differences, convolutions)


def _layers(roots: Sequence[nn.Module]) -> Iterator[nn.Module]:
    """Every layer that can be packed and is in no pack yet."""
    for root in roots:
        for module in root.modules():
            if can_pack(module) and not hasattr(module, "pack"):
                yield module


def _replace(module: Any, forward: Forward, alone: Forward | None = None, of: Adapter | None = None) -> None:
    """Use ``forward`` while gradients are recorded, and ``alone`` while the network is off, of which ``of`` is an
    adapter."""
    own: Forward = module.forward

    def chosen(*args: Any, **more: Any) -> Any:
        if torch.is_grad_enabled():
            return forward(*args, **more)
        is_alone = alone is not None and of is not None and is_off(of)
        return alone(*args, **more) if is_alone and alone is not None else own(*args, **more)

    module.forward = chosen


def _adapter_in(root: nn.Module) -> Adapter | None:
    return next((module for module in root.modules() if isinstance(module, Adapter)), None)


def _attention() -> AbstractContextManager[None]:
    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 9:
        context: AbstractContextManager[None] = sdpa_kernel(list(HOPPER), set_priority=True)
        return context
    return nullcontext()


def attend(query: Tensor, key: Tensor, value: Tensor, batch: int, heads: int, causal: bool = False) -> Tensor:
    """Attention of rows (B·N, heads·D) on rows (B·M, heads·D)."""
    q, k, v = (
        part.view(batch, -1, heads, part.shape[1] // heads).transpose(1, 2) for part in (query, key, value)
    )
    with _attention():
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)  # (B, heads, N, D)
    return out.transpose(1, 2).reshape(len(query), -1)


def attend_context(query: Tensor, both: Tensor, batch: int, heads: int) -> Tensor:
    """Attention of rows (B·N, heads·D) on rows [key | value] (B·M, 2·heads·D)."""
    if few_keys(query, len(both) // batch, heads):
        return ops.attend_few(query, both, batch, heads)
    key, value = both.chunk(2, dim=1)
    return attend(query, key, value, batch, heads)


# ------------------------------------------------------------------------------------------ single layers


def _fuse_layer(layer: Any) -> list[Packed]:
    packed = pack(layer)
    _replace(layer, partial(_layer, packed, isinstance(layer.base, nn.Conv2d)))
    return [packed]


def _fuse_norm(norm: Norm) -> TrainedNorm:
    """A trained norm, wherever it is."""
    trained, own = TrainedNorm(norm), norm.forward
    groups = isinstance(norm.base, nn.GroupNorm)

    def fused(x: Tensor) -> Tensor:
        if not trained.ready or (groups and x.dim() != 4):
            return own(x)
        if groups:
            return ops.group_norm(x, trained, silu=False)[1]
        return ops.layer_norm(x.reshape(-1, x.shape[-1]), trained)[1].view(x.shape)

    _replace(norm, fused)
    return trained


def _fuse_difference(layer: Any) -> TrainedDifference:
    """A whole difference of a layer of products, wherever it is."""
    trained, own, is_conv = TrainedDifference(layer), layer.forward, isinstance(layer.base, nn.Conv2d)

    def fused(x: Tensor) -> Tensor:
        if not trained.ready or x.dtype != trained.weight.dtype:
            output: Tensor = own(x)
            return output
        rows = pictures.as_rows(x) if is_conv else x.reshape(-1, x.shape[-1])
        (out,) = different(rows, [trained])
        return pictures.as_pictures(out, x) if is_conv else out.view(*x.shape[:-1], -1)

    _replace(layer, fused)
    return trained


def _fuse_convolution(layer: Any) -> TrainedConvolution:
    """A LoRA on a convolution, wherever it is."""
    trained, own = TrainedConvolution(layer), layer.forward

    def fused(x: Tensor) -> Tensor:
        output: Tensor = own(x) if trained_convolution(layer, x) is None else trained(x)
        return output

    _replace(layer, fused)
    return trained


def _packed(slots: Sequence[Layers]) -> list[Packed]:
    return [layers for layers in slots if isinstance(layers, Packed)]


def _layer(packed: Packed, is_conv: bool, x: Tensor) -> Tensor:
    rows = pictures.as_rows(x) if is_conv else x.reshape(-1, x.shape[-1])
    out = ops.linear(rows, packed, samples=len(x))
    return pictures.as_pictures(out, x) if is_conv else out.view(*x.shape[:-1], -1)


# ------------------------------------------------------------------------------------------ transformer blocks


def _fuse_block(block: Any) -> list[Packed]:
    attn1, attn2, ff = block.attn1, block.attn2, block.ff.net
    if attn2 is None or block.norm_type != "layer_norm" or type(ff[0]).__name__ != "GEGLU":
        return []
    if not has_adapter(block):
        return []
    layers = [
        *(attn1.to_q, attn1.to_k, attn1.to_v, attn1.to_out[0]),
        *(attn2.to_q, attn2.to_k, attn2.to_v, attn2.to_out[0]),
        *(ff[0].proj, ff[2]),
    ]
    slots = [
        layers_of(*layers[0:3]),
        *(layers_of(layer) for layer in (layers[3], layers[4])),
        layers_of(*layers[5:7]),
        *(layers_of(layer) for layer in layers[7:]),
    ]
    alone = partial(_block, block, [frozen(slot) for slot in slots])
    _replace(block, partial(_block, block, slots), alone, _adapter_in(block))
    object.__setattr__(block, "fused", True)
    return _packed(slots)


def _block(
    block: Any,
    slots: Sequence[Layers],
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,  # noqa: ARG001
    encoder_hidden_states: Tensor | None = None,
    *_args: Any,
    repeated: bool = False,
    **_more: Any,
) -> Tensor:
    """``hidden_states`` (B, N, C), ``encoder_hidden_states`` (B, M, C2); ``repeated``: see ops.feed_forward."""
    batch, shape = len(hidden_states), hidden_states.shape
    assert encoder_hidden_states is not None  # a block with attn2 has a context
    qkv, out1, query, keys, out2, first, second = slots
    x = hidden_states.reshape(-1, shape[-1])
    context = encoder_hidden_states.reshape(-1, encoder_hidden_states.shape[-1])
    x, q, k, v = norm_linear(x, block.norm1, qkv, batch)
    x = linear(attend(q, k, v, batch, block.attn1.heads), out1, x, batch)
    x, q = norm_linear(x, block.norm2, query, batch)
    both = linear(context, keys, samples=batch)
    x = linear(attend_context(q, both, batch, block.attn2.heads), out2, x, batch)
    x = feed_forward(x, block.norm3, first, second, GEGLU, batch, repeated=repeated)
    return x.view(shape)


def _plain_transformer(model: Any) -> bool:
    return bool(model.is_input_continuous and has_adapter(model))


def _fuse_transformer(model: Any) -> list[Packed]:
    into, out_of = layers_of(model.proj_in), layers_of(model.proj_out)
    norm = GroupNorm(model.norm)
    alone = partial(_transformer, model, norm, frozen(into), frozen(out_of))
    _replace(model, partial(_transformer, model, norm, into, out_of), alone, _adapter_in(model))
    return _packed([into, out_of])


def _transformer(
    model: Any,
    norm: GroupNorm,
    into: Layers,
    out_of: Layers,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor | None = None,
    *_args: Any,
    return_dict: bool = True,
    **_more: Any,
) -> Any:
    """``hidden_states`` (B, C, H, W)."""
    batch = len(hidden_states)
    residual, normed = norm(hidden_states, silu=False)
    x = project(pictures.as_rows(normed), into, hidden_states)
    x = x.view(batch, -1, x.shape[1])
    for block in model.transformer_blocks:
        if model.gradient_checkpointing and torch.is_grad_enabled():
            whole = partial(block, repeated=True) if hasattr(block, "fused") else block
            x = model._gradient_checkpointing_func(whole, x, None, encoder_hidden_states)
        else:
            x = block(x, None, encoder_hidden_states)
    out = project(x.reshape(-1, x.shape[-1]), out_of, hidden_states, pictures.as_rows(residual))
    sample = pictures.as_pictures(out, hidden_states)
    if not return_dict:
        return (sample,)
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

    return Transformer2DModelOutput(sample=sample)


# ------------------------------------------------------------------------------------------ text encoders

_ACTIVATIONS = {"QuickGELUActivation": QUICK_GELU, "GELUActivation": GELU}


def split_text_layer(layer: Any) -> tuple[int | None, list[Any]]:
    """A layer of CLIP: the kind of its activation, and the linear layers q, k, v, out, fc1, fc2. The kind is None where
    our forward cannot take the layer's place: releases of transformers before 5 return tuples."""
    attention, mlp = layer.self_attn, layer.mlp
    kind = _ACTIVATIONS.get(type(mlp.activation_fn).__name__)
    returns = str(type(layer).forward.__annotations__.get("return", ""))
    linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, mlp.fc1, mlp.fc2]
    return (None if "tuple" in returns.lower() else kind), linears


def _fuse_text(layer: Any) -> list[Packed]:
    """A layer of CLIP."""
    kind, linears = split_text_layer(layer)
    if kind is None or not has_adapter(layer):
        return []
    slots = [layers_of(*linears[:3]), *(layers_of(one) for one in linears[3:])]
    forward = partial(_text_layer, layer, slots, kind)
    # Late releases of transformers compute a layer again in forward, whose place ours takes; others in __call__.
    inside = hasattr(type(layer).forward, "__wrapped__")
    alone = partial(_text_layer, layer, [frozen(slot) for slot in slots], kind)
    _replace(layer, partial(_checkpointed, layer, forward) if inside else forward, alone, _adapter_in(layer))
    return _packed(slots)


def _checkpointed(layer: Any, forward: Forward, *args: Any, **more: Any) -> Tensor:
    if layer.training and layer.gradient_checkpointing:
        forward = partial(layer._gradient_checkpointing_func, forward)
    outputs: Tensor = forward(*args, **more)
    return outputs


def _text_layer(
    layer: Any, slots: Sequence[Layers], kind: int, hidden_states: Tensor, *_args: Any, **_more: Any
) -> Tensor:
    """``hidden_states`` (B, N, C). The mask is the causal one: no caption is padded with anything that is hidden."""
    batch, shape = len(hidden_states), hidden_states.shape
    qkv, out, first, second = slots
    x, q, k, v = norm_linear(hidden_states.reshape(-1, shape[-1]), layer.layer_norm1, qkv, batch)
    x = linear(attend(q, k, v, batch, layer.self_attn.num_heads, causal=True), out, x, batch)
    repeated = layer.training and getattr(layer, "gradient_checkpointing", False)
    return feed_forward(x, layer.layer_norm2, first, second, kind, batch, repeated=repeated).view(shape)


# ------------------------------------------------------------------------------------------ residual blocks


def _is_known_resnet(block: Any) -> bool:
    return (
        block.time_embedding_norm == "default"
        and block.time_emb_proj is not None
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1.0
        and block.dropout.p == 0
        and type(block.nonlinearity).__name__ == "SiLU"
    )


def _fuse_residual(blocks: Sequence[Any], of: Adapter | None) -> None:
    """``of``: an adapter of the network, by which one sees whether it is off."""
    in_one = [block for block in blocks if not isinstance(block.time_emb_proj, Adapter)]
    shifts = TimeShifts(in_one) if in_one else None
    for block in blocks:
        forward: Forward = partial(_resnet, block, shifts)
        if has_adapter(block):
            forward = _fuse_trained_resnet(block, shifts if block in in_one else None)
        _replace(block, forward, forward, of)


def _resnet(
    block: Any, shifts: TimeShifts | None, input_tensor: Tensor, temb: Tensor, *_args: Any, **_more: Any
) -> Tensor:
    """``input_tensor`` (B, C, H, W), ``temb`` (B, T)."""
    assert shifts is not None  # its projection is not trained
    shift = shifts.of(block, temb)
    x, y = ops.group_norm(input_tensor, block.norm1, silu=True)
    y = ops.convolution(y, block.conv1)
    _, y = ops.group_norm(y, block.norm2, silu=True, shift=shift)
    if block.conv_shortcut is not None:
        x = _shortcut(block.conv_shortcut, x)
    return ops.convolution(y, block.conv2, bias=block.conv2.bias, residual=x)


def _fuse_trained_resnet(block: Any, shifts: TimeShifts | None) -> Forward:
    for layer in (block.conv1, block.conv2):
        _fuse_base(layer)
    return partial(_trained_resnet, block, GroupNorm(block.norm1), GroupNorm(block.norm2), shifts)


def _fuse_base(layer: Any) -> None:
    """Let an adapter's frozen convolution have the quicker gradient of its input."""
    base = layer.base if isinstance(layer, Adapter) else None
    if isinstance(base, nn.Conv2d) and base.groups == 1 and base.dilation == (1, 1):
        _replace(base, lambda x: ops.convolution(x, base, bias=base.bias))


def _trained_resnet(
    block: Any,
    norm1: GroupNorm,
    norm2: GroupNorm,
    shifts: TimeShifts | None,
    input_tensor: Tensor,
    temb: Tensor,
    *_args: Any,
    **_more: Any,
) -> Tensor:
    """The same with adapters on some of the layers and norms."""
    shift = block.time_emb_proj(F.silu(temb)) if shifts is None else shifts.of(block, temb)
    x, y = norm1(input_tensor, silu=True)
    y = convolution(block.conv1, y, bias=shifts is None)
    _, y = norm2(y, silu=True, shift=shift)
    if block.conv_shortcut is not None:
        x = _shortcut(block.conv_shortcut, x)
    return convolution(block.conv2, y, residual=x)


def _shortcut(layer: Any, x: Tensor) -> Tensor:
    """The 1x1 convolution beside a residual block on x (B, C, H, W)."""
    if isinstance(layer, Adapter):
        out: Tensor = layer(x)
        return out
    return pictures.as_pictures(
        ops.frozen_linear(pictures.as_rows(x), layer.weight.flatten(1), layer.bias), x
    )
