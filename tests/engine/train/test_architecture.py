"""Architectures read from shapes alone: published models, lean relatives, and shapes that are no model."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from lorapipe_engine.errors import InputError  # noqa: E402
from lorapipe_engine.models.architecture import (  # noqa: E402
    clip_config,
    fixed_heads,
    unet_config,
    vae_config,
    wide_heads,
)
from support.full_bases import SDXL_UNET as SDXL  # noqa: E402

EIGHT = partial(fixed_heads, 8)
PLAIN = ("DownBlock2D", "UpBlock2D", "UNetMidBlock2D")
CROSS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D", "UNetMidBlock2DCrossAttn")


def blocks(down: str, up: str) -> dict[str, Any]:
    """Block types by a letter for each level: "x" with attention, "-" without."""
    return {
        "down_block_types": tuple((CROSS if mark == "x" else PLAIN)[0] for mark in down),
        "up_block_types": tuple((CROSS if mark == "x" else PLAIN)[1] for mark in up),
    }


SD2 = {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}
UNETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SD 1.5": (EIGHT, {"cross_attention_dim": 768, "attention_head_dim": (8, 8, 8, 8)}),
    "SD 2.1": (wide_heads, SD2),
    "SD 2.1 linear": (wide_heads, {**SD2, "use_linear_projection": True}),
    "SDXL": (wide_heads, SDXL),
    "depth differs on the way up": (
        wide_heads,
        {
            **SDXL,
            "transformer_layers_per_block": (1, (1, 2), (4, 4)),
            "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
        },
    ),
    "no attention in the middle": (wide_heads, {**SDXL, "mid_block_type": PLAIN[2]}),
    "no middle": (wide_heads, {**SDXL, "mid_block_type": None}),
    "layers differ by level": (
        EIGHT,
        {
            "block_out_channels": (64, 128, 192),
            **blocks("xx-", "-xx"),
            "layers_per_block": (1, 2, 3),
            "attention_head_dim": (8, 8, 8),
            "cross_attention_dim": 96,
        },
    ),
    "very narrow": (
        EIGHT,
        {
            "block_out_channels": (16, 24),
            **blocks("xx", "xx"),
            "attention_head_dim": (8, 8),
            "norm_num_groups": 8,
            "cross_attention_dim": 40,
        },
    ),
}


def shapes_of(module: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_is_rebuilt_from_its_shapes(name: str) -> None:
    from diffusers import UNet2DConditionModel

    heads, settings = UNETS[name]
    with torch.device("meta"):
        source = UNet2DConditionModel(**settings)
        found = unet_config(shapes_of(source), heads, pooled_width=1280)
        again = UNet2DConditionModel(**found)
    assert shapes_of(again) == shapes_of(source)
    assert [type(m).__name__ for m in again.modules()] == [type(m).__name__ for m in source.modules()]
    ours, theirs = (
        [
            (module.heads, module.inner_dim)
            for module in unet.modules()
            if type(module).__name__ == "Attention"
        ]
        for unet in (again, source)
    )
    assert ours == theirs
    for key in ("norm_num_groups", "use_linear_projection", "addition_time_embed_dim", "addition_embed_type"):
        assert again.config[key] == source.config[key]


@pytest.mark.parametrize(
    "settings",
    [
        {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
        {"block_out_channels": (32, 64, 64), "layers_per_block": 1, "latent_channels": 8},
        {"block_out_channels": (16, 24), "norm_num_groups": 8, "use_quant_conv": False},
        {"block_out_channels": (32,), "mid_block_add_attention": False, "use_post_quant_conv": False},
    ],
)
def test_a_vae_is_rebuilt_from_its_shapes(settings: dict[str, Any]) -> None:
    from diffusers import AutoencoderKL

    levels = len(settings["block_out_channels"])
    types = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
    }
    with torch.device("meta"):
        source = AutoencoderKL(**types, **settings)
        again = AutoencoderKL(**vae_config(shapes_of(source)))
    assert shapes_of(again) == shapes_of(source)
    assert again.config.norm_num_groups == source.config.norm_num_groups


@pytest.mark.parametrize(
    ("width", "layers", "heads"), [(768, 12, 12), (1024, 23, 16), (1280, 32, 20), (48, 1, 1)]
)
def test_a_text_encoder_is_read_from_its_shapes(width: int, layers: int, heads: int) -> None:
    shapes = {
        "text_model.embeddings.token_embedding.weight": (1000, width),
        "text_model.embeddings.position_embedding.weight": (77, width),
        "text_projection.weight": (1280, width),
        **{f"text_model.encoder.layers.{n}.mlp.fc1.weight": (width * 4, width) for n in range(layers)},
    }
    found = clip_config(shapes, "gelu")
    assert (found["hidden_size"], found["num_hidden_layers"], found["num_attention_heads"]) == (
        width,
        layers,
        heads,
    )
    assert (found["intermediate_size"], found["projection_dim"], found["hidden_act"]) == (
        width * 4,
        1280,
        "gelu",
    )
    assert (found["bos_token_id"], found["eos_token_id"]) == (998, 999)


def test_what_is_no_base_is_refused() -> None:
    from diffusers import UNet2DConditionModel

    with pytest.raises(InputError, match="no down blocks"):
        unet_config({}, EIGHT)
    with pytest.raises(InputError, match="lacks its encoder or decoder"):
        vae_config({"decoder.conv_in.weight": (8, 4, 3, 3)})
    with pytest.raises(InputError, match="no layers"):
        clip_config({}, "gelu")
    with torch.device("meta"):
        inpainting = UNet2DConditionModel(in_channels=9)
        labels = UNet2DConditionModel(num_class_embeds=10)
    with pytest.raises(InputError, match="inpainting"):
        unet_config(shapes_of(inpainting), EIGHT)
    with pytest.raises(InputError, match="class labels"):
        unet_config(shapes_of(labels), EIGHT)
