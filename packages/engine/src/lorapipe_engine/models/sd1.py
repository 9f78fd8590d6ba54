"""Stable Diffusion 1.x: facts and names."""

from __future__ import annotations

from types import MappingProxyType

from lorapipe_engine.models.family import BlockLayout, Family
from lorapipe_engine.models.ldm import UNET_PREFIX, VAE_PREFIX, LdmNames
from lorapipe_engine.models.stable_diffusion import UNET_CONV_TARGETS, diffusers_block, targets

SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    checkpoint_prefixes=MappingProxyType(
        {"unet": UNET_PREFIX, "vae": VAE_PREFIX, "te1": "cond_stage_model.transformer."}
    ),
    lora_prefixes=MappingProxyType({"te1": "lora_te", "unet": "lora_unet"}),
    targets=targets("te1"),
    conv_targets=UNET_CONV_TARGETS,
    names=LdmNames(),
    blocks=BlockLayout(side=12, middle=1, number=diffusers_block),
    context_width=768,
    latent_scale=0.18215,
    resolution=512,
    clip_skip=2,
    base_version="sd_v1",
    v_version="sd_v1_v",
    architecture="stable-diffusion-v1",
    trainer="lorapipe_engine.train.families.sd1:StableDiffusion",
    plain_up_blocks=frozenset({0}),
    heads=8,
    activations=("quick_gelu",),
)
