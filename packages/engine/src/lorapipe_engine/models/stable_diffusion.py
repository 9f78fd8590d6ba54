"""What SD 1.x, SD 2.x and SDXL share: targets, blocks, and telling their files apart."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from lorapipe_engine.models.family import Recognised, Shapes
from lorapipe_engine.models.ldm import UNET_PREFIX, VAE_PREFIX

# Classes whose linear layers and convolutions take a LoRA (kohya's target lists).
TEXT_TARGETS = ("CLIPAttention", "CLIPMLP")
UNET_TARGETS = ("Transformer2DModel",)
UNET_CONV_TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"unet": ("ResnetBlock2D", "Downsample2D", "Upsample2D")}
)


def targets(*text_parts: str) -> Mapping[str, tuple[str, ...]]:
    """The classes by part, for so many text encoders."""
    return MappingProxyType({**dict.fromkeys(text_parts, TEXT_TARGETS), "unet": UNET_TARGETS})


def diffusers_block(name: str) -> int | None:
    """The block of a UNet module by its name in a LoRA file of SD 1.x or 2.x: of 25 blocks 12 down, 1 in the middle, 12
    up, where three numbers make a level (two layers and the sampler) and block 0 has no module."""
    if name.startswith("lora_unet_mid_block_"):
        return 12
    match = re.match(
        r"lora_unet_(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)", name
    )
    if match is None:
        return None
    layer = int(match[4]) if match[3] in ("resnets", "attentions") else 2
    return (1 if match[1] == "down" else 13) + 3 * int(match[2]) + layer


# -------------------------------------------------------------------------------- recognising files


_LORA_NAME = re.compile(
    r"(lora|lycoris|oft)_(unet|te\d?|transformer|prior)_|.*\.(lora_(A|B|up|down|mid)|lora\.(up|down))\b"
    r"|.*(\.lora_linear_layer|_lora)\.(up|down)\.|.*\.(hada_w|lokr_w)[12]"
)
_FIRST_LAYER = f"{UNET_PREFIX}input_blocks.0.0.weight"
_LDM_UNET = re.compile(r"(input_blocks|output_blocks|middle_block)\.\d+\.")
_DIFFUSERS_UNET = re.compile(r"(down_blocks|up_blocks|mid_block)\.")
_VAE = re.compile(r"(encoder|decoder)\.(down|up|mid|down_blocks|up_blocks|mid_block)\.")
_TEXT = re.compile(r"(text_model\.)?encoder\.layers\.\d+\.|(model\.)?transformer\.resblocks\.\d+\.")
_CONTEXT_KEY = re.compile(r".*attn2[._]to_k\.(weight|lora_down\.weight|lora_A\.weight)$")
_WIDTHS = {768: "sd1", 1024: "sd2"}


def recognise_stable_diffusion(keys: Shapes) -> Recognised:
    """Kind and family of a weight file from its tensors' names and shapes.

    Names decide, so that models of unusual widths are recognised too. Shapes are asked only where families
    use the same names: SD 1.x and 2.x without text encoder differ in the width of the text states and in the
    layers around their attention, the refiner's UNet and LoRA files without text encoder in that width.
    """
    # Some trainers left a few tensors under a network's names in their checkpoints.
    if _FIRST_LAYER not in keys and any(_LORA_NAME.match(key) for key in keys):
        return Recognised("lora", network_of_stable_diffusion(keys))
    unet = {
        key.removeprefix(UNET_PREFIX): shape for key, shape in keys.items() if key.startswith(UNET_PREFIX)
    }
    has = _starts_in(keys)
    text = has("cond_stage_model.", "conditioner.embedders.")
    if unet and (text or has(VAE_PREFIX)):
        return _checkpoint(unet, has)
    bare = unet or keys
    if any(_LDM_UNET.match(key) or _DIFFUSERS_UNET.match(key) for key in bare):
        return _unet(bare)
    if text:
        return Recognised("text_encoder", _text_family(has))
    if any(_VAE.match(key.removeprefix(VAE_PREFIX)) for key in keys):
        return Recognised("vae")
    if any(_TEXT.match(key) for key in keys):
        return Recognised("text_encoder")
    return Recognised("unknown")


def _checkpoint(unet: Shapes, has: Callable[..., bool]) -> Recognised:
    # Flux, SD3 and others keep their transformer under the same prefix.
    if not any(_LDM_UNET.match(key) for key in unet):
        return Recognised("unknown")
    model = _unet(unet)
    if has("conditioner.embedders.0.model.") and not has("conditioner.embedders.1."):
        return Recognised("refiner")
    family = _text_family(has)
    if family is not None:
        return Recognised("checkpoint", family)
    return model if model.kind == "refiner" else Recognised("checkpoint", model.family)


def _text_family(has: Callable[..., bool]) -> str | None:
    for name, prefix in (
        ("sdxl", "conditioner.embedders.1."),
        ("sd2", "cond_stage_model.model."),
        ("sd1", "cond_stage_model.transformer."),
    ):
        if has(prefix):
            return name
    return None


def _unet(shapes: Shapes) -> Recognised:
    has = _starts_in(shapes)
    if has("label_emb.", "add_embedding."):
        return Recognised("refiner") if _context_width(shapes) == 1280 else Recognised("unet", "sdxl")
    if (width := _context_width(shapes)) in _WIDTHS:
        return Recognised("unet", _WIDTHS[width])
    # Other widths than the published: SD 2.x has linear layers around its attention.
    linear = any(len(shape) == 2 for key, shape in shapes.items() if key.endswith(".proj_in.weight"))
    return Recognised("unet", "sd2" if linear else "sd1")


def network_of_stable_diffusion(keys: Shapes) -> str | None:
    """Family of a network file, from its text encoders, the depth of its transformers, and block names."""
    # Dots and underscores alike: kohya's, LyCORIS' and PEFT's names then read the same.
    names = [re.sub(r"^(lora|lycoris|oft)_", "", key.replace(".", "_")) for key in keys]
    unet = [name for name in names if name.startswith("unet_")]
    text = [name for name in names if re.match(r"te\d?_|text_encoder_", name)]
    if any(re.match(r"te2_|text_encoder_2_", name) for name in text):
        return "sdxl"
    blocks = [name for name in unet if re.match(r"unet_(input|output|middle|down|up|mid)_block", name)]
    if not blocks and (unet or not text):
        return None
    if any(re.search(r"transformer_blocks_[1-9]", name) for name in blocks):
        return "sdxl"
    layers = (int(match[1]) for name in text if (match := re.search(r"encoder_layers_(\d+)_", name)))
    deepest = max(layers, default=-1)
    if deepest >= 12:
        return "sd2"
    width = _context_width(keys)
    # SDXL has no attention in its first level.
    if any(re.match(r"unet_down_blocks_0_attentions_", name) for name in blocks):
        return "sd2" if width == 1024 and deepest < 0 else "sd1"
    # Kohya's name for SDXL's first text encoder, and checkpoint names in the UNet, are SDXL's own custom.
    if any(name.startswith("te1_") for name in text):
        return "sdxl"
    if any(re.match(r"unet_(input|output|middle)_block", name) for name in blocks):
        return "sdxl"
    return {1024: "sd2", 2048: "sdxl"}.get(width or 0, "sd1") if deepest < 0 else "sd1"


def _context_width(shapes: Shapes) -> int | None:
    """Width of the text states, from the first cross-attention found."""
    for key, shape in shapes.items():
        if _CONTEXT_KEY.match(key) and len(shape) >= 2:
            return shape[1]
    return None


def _starts_in(keys: Iterable[str]) -> Callable[..., bool]:
    """A question: does any key start with one of the prefixes?"""
    return lambda *prefixes: any(key.startswith(prefixes) for key in keys)
