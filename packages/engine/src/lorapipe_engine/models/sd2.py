"""Stable Diffusion 2.x: facts and names."""

from __future__ import annotations

from types import MappingProxyType

from lorapipe_engine.models.family import BlockLayout, Family
from lorapipe_engine.models.ldm import UNET_PREFIX, VAE_PREFIX, LdmNames
from lorapipe_engine.models.stable_diffusion import UNET_CONV_TARGETS, diffusers_block, targets

SD2 = Family(
    name="sd2",
    title="Stable Diffusion 2.x",
    checkpoint_prefixes=MappingProxyType(
        {"unet": UNET_PREFIX, "vae": VAE_PREFIX, "te1": "cond_stage_model.model."}
    ),
    lora_prefixes=MappingProxyType({"te1": "lora_te", "unet": "lora_unet"}),
    targets=targets("te1"),
    conv_targets=UNET_CONV_TARGETS,
    names=LdmNames(),
    blocks=BlockLayout(side=12, middle=1, number=diffusers_block),
    context_width=1024,
    latent_scale=0.18215,
    # Its 512 models predict noise, its 768 models v, with the same tensors.
    prediction=None,
    resolution=768,
    base_version="sd_v2",
    v_version="sd_v2_v",
    architecture="stable-diffusion-v2-512",
    v_architecture="stable-diffusion-v2-768-v",
    trainer="lorapipe_engine.train.families.sd1:StableDiffusion2",
    plain_up_blocks=frozenset({0}),
    activations=("gelu",),
    spare_text_layers=1,
)
