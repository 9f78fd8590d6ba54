"""Names of the same layer in checkpoints and LoRA files, for whichever family.

The canonical path of a layer is its path in the module that the engine trains, as the family's ``names`` have it.
Parts are the family's: "unet", "vae", "te1" and "te2" for Stable Diffusion.

Mapping runs from checkpoint keys to LoRA names, never back: underscores do not tell where dots were.
"""

from __future__ import annotations

from collections.abc import Mapping

from lorapipe_engine.models.families import get_family
from lorapipe_engine.models.family import STANDARD, Layout, Place
from lorapipe_engine.models.ldm import (
    find_layout,
    openclip_key,
    text_path,
    unet_to_diffusers,
    unet_to_ldm,
    vae_to_diffusers,
    vae_to_ldm,
)

__all__ = [
    "STANDARD",
    "Layout",
    "Place",
    "canonical",
    "find_layout",
    "locate",
    "lora_name",
    "lora_names",
    "lora_names_of",
    "openclip_key",
    "text_path",
    "unet_to_diffusers",
    "unet_to_ldm",
    "vae_to_diffusers",
    "vae_to_ldm",
]


def canonical(family: str, part: str, path: str) -> str:
    """The canonical path of a layer from its path in the module tree."""
    return get_family(family).names.canonical(part, path)


def locate(
    checkpoint_key: str, shape: tuple[int, ...], family: str, layout: Layout = STANDARD
) -> tuple[Place, ...]:
    """Layers whose tensors lie in a checkpoint's tensor: mostly one, three for OpenCLIP's fused q, k and v.

    Empty for keys that no layer has (``model_ema.``, schedules, position ids, marks). Raises InputError for an unknown
    family.
    """
    facts = get_family(family)
    return facts.names.locate(facts, checkpoint_key, shape, layout)


def lora_name(family: str, part: str, canonical_path: str, layers_per_block: int = 2) -> str:
    """The name kohya's trainer gives to a layer: ``lora_unet_...``, ``lora_te_...`` (SDXL ``lora_te1_...``).

    Raises InputError for an unknown family.
    """
    facts = get_family(family)
    return facts.names.kohya(facts, part, facts.names.canonical(part, canonical_path), layers_per_block)


def lora_names(
    family: str, part: str, canonical_path: str, layers_per_block: int = 2, checkpoint_path: str | None = None
) -> tuple[str, ...]:
    """Every name a LoRA file may have for a layer, kohya's first.

    ``checkpoint_path`` is the layer's path in the checkpoint where the caller knows it. Empty for the VAE.
    """
    facts = get_family(family)
    if part not in facts.lora_prefixes:
        return ()
    path = facts.names.canonical(part, canonical_path)
    first = facts.names.kohya(facts, part, path, layers_per_block)
    return tuple(
        dict.fromkeys([first, *facts.names.others(facts, part, path, layers_per_block, checkpoint_path)])
    )


def lora_names_of(
    checkpoint_key: str, shape: tuple[int, ...], family: str, layout: Layout = STANDARD
) -> Mapping[str, Place]:
    """Names of LoRA modules that change a checkpoint's tensor, each with its place there, kohya's name first.

    Biases and norms answer to their layer's name as well (``diff_b``, ``w_norm``): look at ``Place.kind``.
    """
    facts = get_family(family)
    answers: dict[str, Place] = {}
    for place in locate(checkpoint_key, shape, family, layout):
        path = None
        if place.part == facts.denoiser:
            path = checkpoint_key.removeprefix(facts.checkpoint_prefixes[place.part]).rpartition(".")[0]
        names = lora_names(family, place.part, place.path, layout.layers_per_block, path)
        answers.update(dict.fromkeys(names, place))
    return answers
