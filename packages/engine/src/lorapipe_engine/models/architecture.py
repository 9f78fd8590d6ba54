"""Read a model's architecture from the shapes of its tensors.

Every function takes names (diffusers' or transformers') with shapes and gives the arguments of the module's
configuration, so that a narrow or unusual checkpoint needs no configuration file. What shapes cannot tell is
fixed by the family: heads of attention, groups of norms, activations.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from lorapipe_engine.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]
Heads = Callable[[int], int]

HEAD_WIDTH = 64
TIME_NUMBERS = 6  # SDXL: height and width of the original, crop top and left, height and width of the target


def fixed_heads(heads: int, width: int) -> int:
    """The same number of heads at every width, as eight in SD 1.x."""
    return math.gcd(heads, width)


def wide_heads(width: int) -> int:
    """Heads of SD 2.x, SDXL and CLIP: as many as give each 64 channels."""
    return max(1, width // HEAD_WIDTH)


def unet_config(shapes: Shapes, heads: Heads, pooled_width: int | None = None) -> dict[str, Any]:
    """Arguments of ``UNet2DConditionModel``. ``pooled_width`` is P of SDXL's pooled text vector, if known.

    Raises InputError for UNets that take something besides latents, time and text (inpainting, class labels).
    """
    levels = _count(shapes, "down_blocks")
    if levels == 0 or "conv_in.weight" not in shapes:
        raise InputError("the UNet has no down blocks: not a Stable Diffusion UNet, or a part of one")
    _refuse_extra_inputs(shapes)
    widths = [_at(shapes, f"down_blocks.{level}.resnets.0.conv1.weight")[0] for level in range(levels)]
    layers = [_count(shapes, f"down_blocks.{level}.resnets") for level in range(levels)]
    down, up = (
        [_depths(shapes, f"{side}_blocks.{level}") for level in range(levels)] for side in ("down", "up")
    )
    middle = _depths(shapes, "mid_block")
    config: dict[str, Any] = {
        "in_channels": _at(shapes, "conv_in.weight")[1],
        "out_channels": _at(shapes, "conv_out.weight")[0],
        "block_out_channels": tuple(widths),
        "layers_per_block": layers[0] if len(set(layers)) == 1 else tuple(layers),
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in down),
        "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in up),
        "mid_block_type": _middle_type(shapes, middle),
        "cross_attention_dim": _context_width(shapes),
        "attention_head_dim": tuple(heads(width) for width in widths),
        "norm_num_groups": norm_groups(widths),
        "use_linear_projection": _linear_projection(shapes),
    }
    config.update(_transformer_depths(down, up, middle))
    if "add_embedding.linear_1.weight" in shapes:
        width = _at(shapes, "add_embedding.linear_1.weight")[1]
        config["addition_embed_type"] = "text_time"
        config["projection_class_embeddings_input_dim"] = width
        rest = width - pooled_width if pooled_width is not None else TIME_NUMBERS * 256
        if rest <= 0 or rest % TIME_NUMBERS:
            raise InputError(
                f"the UNet's added embedding of {width} does not fit a pooled text of {pooled_width}"
            )
        config["addition_time_embed_dim"] = rest // TIME_NUMBERS
    return config


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """Arguments of ``AutoencoderKL``."""
    levels = _count(shapes, "encoder.down_blocks")
    if levels == 0 or "decoder.conv_in.weight" not in shapes:
        raise InputError("the VAE lacks its encoder or decoder: not a Stable Diffusion VAE, or a part of one")
    widths = [
        _at(shapes, f"encoder.down_blocks.{level}.resnets.0.conv1.weight")[0] for level in range(levels)
    ]
    return {
        "in_channels": _at(shapes, "encoder.conv_in.weight")[1],
        "out_channels": _at(shapes, "decoder.conv_out.weight")[0],
        "latent_channels": _at(shapes, "decoder.conv_in.weight")[1],
        "block_out_channels": tuple(widths),
        "layers_per_block": _count(shapes, "encoder.down_blocks.0.resnets"),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "norm_num_groups": norm_groups(widths),
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in shapes,
    }


def clip_config(shapes: Shapes, activation: str) -> dict[str, Any]:
    """Arguments of ``CLIPTextConfig``; names start with ``text_model.``.

    ``activation``: "quick_gelu" or "gelu".
    """
    layers = _count(shapes, "text_model.encoder.layers")
    if layers == 0:
        raise InputError("the text encoder has no layers: not a CLIP text model, or a part of one")
    vocabulary, width = _at(shapes, "text_model.embeddings.token_embedding.weight")[:2]
    config = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _at(shapes, "text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": layers,
        "num_attention_heads": wide_heads(width),
        "max_position_embeddings": _at(shapes, "text_model.embeddings.position_embedding.weight")[0],
        "hidden_act": activation,
        "projection_dim": width,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }
    if "text_projection.weight" in shapes:
        config["projection_dim"] = _at(shapes, "text_projection.weight")[0]
    return config


def norm_groups(widths: list[int]) -> int:
    """Groups of the group norms: 32, or as many of them as divide every width."""
    return math.gcd(32, *widths)


# ------------------------------------------------------------ the UNet's parts


def _refuse_extra_inputs(shapes: Shapes) -> None:
    channels = _at(shapes, "conv_in.weight")[1]
    if channels == 9:
        raise InputError("an inpainting model (9 input channels) is no base for training; take the plain one")
    if channels != _at(shapes, "conv_out.weight")[0]:
        raise InputError(
            f"the UNet takes {channels} channels but predicts {shapes['conv_out.weight'][0]}: no base"
        )
    if "class_embedding.linear_1.weight" in shapes or "class_embedding.weight" in shapes:
        raise InputError("the UNet takes class labels (an upscaler or unCLIP model): no base for training")


def _depths(shapes: Shapes, block: str) -> list[int]:
    """Transformer layers in each attention of a block."""
    return [
        _count(shapes, f"{block}.attentions.{index}.transformer_blocks")
        for index in range(_count(shapes, f"{block}.attentions"))
    ]


def _transformer_depths(down: list[list[int]], up: list[list[int]], middle: list[int]) -> dict[str, Any]:
    """Depths level by level; lists inside a level, and the up side apart, only where they are needed."""
    there: list[Any] = [_one_or_list(depths) for depths in down]
    back: list[Any] = [_one_or_list(depths) for depths in up]
    if not down[-1]:
        there[-1] = middle[0] if middle else 1  # the middle block takes the depth of the last level
    plain = all(isinstance(depth, int) for depth in there + back)
    symmetric = all(
        a == b or not d or not u for a, b, d, u in zip(there, back[::-1], down, up[::-1], strict=True)
    )
    if plain and symmetric:
        return {"transformer_layers_per_block": there[0] if len(set(there)) == 1 else tuple(there)}
    return {"transformer_layers_per_block": tuple(there), "reverse_transformer_layers_per_block": tuple(back)}


def _one_or_list(depths: list[int]) -> int | tuple[int, ...]:
    if len(set(depths)) > 1:
        return tuple(depths)
    return depths[0] if depths else 1


def _middle_type(shapes: Shapes, depths: list[int]) -> str | None:
    if depths:
        return "UNetMidBlock2DCrossAttn"
    return "UNetMidBlock2D" if _count(shapes, "mid_block.resnets") else None


def _context_width(shapes: Shapes) -> int:
    widths = {_at(shapes, name)[1] for name in shapes if name.endswith(".attn2.to_k.weight")}
    if len(widths) != 1:
        raise InputError(
            f"the UNet's cross-attention has {len(widths)} widths {sorted(widths)}; one is needed"
        )
    return widths.pop()


def _linear_projection(shapes: Shapes) -> bool:
    """Whether attention blocks start with a linear layer (2-D) instead of a 1x1 convolution (4-D)."""
    return any(len(shape) == 2 for name, shape in shapes.items() if name.endswith(".proj_in.weight"))


# ------------------------------------------------------------ names and shapes


def _count(shapes: Shapes, prefix: str) -> int:
    """One more than the highest number after ``prefix.``; 0 if there is none."""
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return max((int(match[1]) + 1 for name in shapes if (match := pattern.match(name))), default=0)


def _at(shapes: Shapes, name: str) -> tuple[int, ...]:
    """Shape of a weight matrix or kernel."""
    if name not in shapes:
        raise InputError(f"tensor {name} is missing: not a whole model")
    if len(shapes[name]) < 2 or 0 in shapes[name]:
        raise InputError(f"tensor {name} has the shape {shapes[name]}, which is no layer's")
    return shapes[name]
