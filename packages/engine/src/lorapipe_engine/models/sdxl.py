"""Stable Diffusion XL: facts and names."""

from __future__ import annotations

import re
from types import MappingProxyType

from lorapipe_engine.models.family import BlockLayout, Family
from lorapipe_engine.models.ldm import UNET_PREFIX, VAE_PREFIX, LdmNames
from lorapipe_engine.models.stable_diffusion import UNET_CONV_TARGETS, targets

_SIDE, _MIDDLE = 9, 3
_FIRST = {"input": 1, "middle": 1 + _SIDE, "output": 1 + _SIDE + _MIDDLE}


def ldm_block(name: str) -> int | None:
    """The block of a UNet module by its name in a LoRA file: of 23 the embeddings are 0, 9 ``input_blocks``, 3 in the
    middle, 9 ``output_blocks``, and the output is 22."""
    match = re.match(r"lora_unet_(input|middle|output)_(?:blocks_|block_)(\d+)_", name)
    return _FIRST[match[1]] + int(match[2]) if match else None


SDXL = Family(
    name="sdxl",
    title="Stable Diffusion XL",
    checkpoint_prefixes=MappingProxyType(
        {
            "unet": UNET_PREFIX,
            "vae": VAE_PREFIX,
            "te1": "conditioner.embedders.0.transformer.",
            "te2": "conditioner.embedders.1.model.",
        }
    ),
    lora_prefixes=MappingProxyType({"te1": "lora_te1", "te2": "lora_te2", "unet": "lora_unet"}),
    targets=targets("te1", "te2"),
    conv_targets=UNET_CONV_TARGETS,
    names=LdmNames(),
    blocks=BlockLayout(side=_SIDE, middle=_MIDDLE, number=ldm_block, ends=1),
    context_width=2048,
    latent_scale=0.13025,
    resolution=1024,
    rank=32,
    reads_clip_skip=False,
    base_version="sdxl_base_v1-0",
    architecture="stable-diffusion-xl-v1-base",
    implementation="https://github.com/Stability-AI/generative-models",
    trainer="lorapipe_engine.train.families.sdxl:StableDiffusionXL",
    ldm_names=True,
    activations=("quick_gelu", "gelu"),
    bucket_step=32,
)
