"""Facts about the model families, and recognising what a weight file is from the names inside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from lorapipe_engine.errors import InputError

Kind = Literal["checkpoint", "lora", "unet", "vae", "text_encoder", "refiner", "unknown"]
Shapes = Mapping[str, tuple[int, ...]]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."


@dataclass(frozen=True, kw_only=True)
class Family:
    """One model family.

    ``checkpoint_prefixes`` and ``lora_prefixes`` go by part ("unet", "te1", "te2", "vae"): what keys of a
    single-file checkpoint, and names in a LoRA file, begin with. ``context_width`` is the width of the text
    states in the published models. ``latent_scale`` multiplies latents on their way to the UNet.
    ``ldm_names``: LoRA files name UNet modules as checkpoints do, not as diffusers does. ``plain_up_blocks``:
    diffusers' up blocks that upsample but have no attention. ``spare_text_layers``: last
    layers in the checkpoint that are never run.
    ``base_version`` and ``architecture`` are the words of the metadata (``ss_base_model_version``,
    ``modelspec.architecture``) for plain noise prediction. ``trainer``: "module:class" for training.
    """

    name: str
    title: str
    checkpoint_prefixes: Mapping[str, str]
    lora_prefixes: Mapping[str, str]
    context_width: int
    latent_scale: float
    ldm_names: bool
    plain_up_blocks: frozenset[int]
    spare_text_layers: int
    resolution: int
    base_version: str
    architecture: str
    trainer: str

    @property
    def text_parts(self) -> tuple[str, ...]:
        """The text encoders in order: "te1", for SDXL also "te2"."""
        return tuple(part for part in self.lora_prefixes if part != "unet")


SD1 = Family(
    name="sd1",
    title="Stable Diffusion 1.x",
    checkpoint_prefixes=MappingProxyType(
        {"unet": UNET_PREFIX, "vae": VAE_PREFIX, "te1": "cond_stage_model.transformer."}
    ),
    lora_prefixes=MappingProxyType({"te1": "lora_te", "unet": "lora_unet"}),
    context_width=768,
    latent_scale=0.18215,
    ldm_names=False,
    plain_up_blocks=frozenset({0}),
    spare_text_layers=0,
    resolution=512,
    base_version="sd_v1",
    architecture="stable-diffusion-v1",
    trainer="lorapipe_engine.train.families.sd1:StableDiffusion",
)
SD2 = Family(
    name="sd2",
    title="Stable Diffusion 2.x",
    checkpoint_prefixes=MappingProxyType(
        {"unet": UNET_PREFIX, "vae": VAE_PREFIX, "te1": "cond_stage_model.model."}
    ),
    lora_prefixes=MappingProxyType({"te1": "lora_te", "unet": "lora_unet"}),
    context_width=1024,
    latent_scale=0.18215,
    ldm_names=False,
    plain_up_blocks=frozenset({0}),
    spare_text_layers=1,
    resolution=768,
    base_version="sd_v2",
    architecture="stable-diffusion-v2-512",
    trainer="lorapipe_engine.train.families.sd1:StableDiffusion2",
)
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
    context_width=2048,
    latent_scale=0.13025,
    ldm_names=True,
    plain_up_blocks=frozenset(),
    spare_text_layers=0,
    resolution=1024,
    base_version="sdxl_base_v1-0",
    architecture="stable-diffusion-xl-v1-base",
    trainer="lorapipe_engine.train.families.sdxl:StableDiffusionXL",
)
FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in (SD1, SD2, SDXL)})


def get_family(name: str) -> Family:
    """The family called ``name``. Raises InputError for a name that is not in the table."""
    if name not in FAMILIES:
        raise InputError(f"unknown model family {name!r}; known are {', '.join(FAMILIES)}")
    return FAMILIES[name]


@dataclass(frozen=True)
class Recognised:
    """What a weight file is. ``family`` is None where names do not tell, or tell of one not known here.

    "refiner" is the SDXL refiner, which no tool takes as a base.
    """

    kind: Kind
    family: str | None = None


_LORA_NAME = re.compile(
    r"(lora|lycoris|oft)_(unet|te\d?|transformer|prior)_|.*\.(lora_(A|B|up|down|mid)|lora\.(up|down))\b"
    r"|.*(\.lora_linear_layer|_lora)\.(up|down)\.|.*\.(hada_w|lokr_w)[12]"
)
_LDM_UNET = re.compile(r"(input_blocks|output_blocks|middle_block)\.\d+\.")
_DIFFUSERS_UNET = re.compile(r"(down_blocks|up_blocks|mid_block)\.")
_VAE = re.compile(r"(encoder|decoder)\.(down|up|mid|down_blocks|up_blocks|mid_block)\.")
_TEXT = re.compile(r"(text_model\.)?encoder\.layers\.\d+\.|(model\.)?transformer\.resblocks\.\d+\.")
_CONTEXT_KEY = re.compile(r".*attn2[._]to_k\.(weight|lora_down\.weight|lora_A\.weight)$")
_WIDTHS = {768: "sd1", 1024: "sd2"}


def recognise(keys: Shapes) -> Recognised:
    """Kind and family of a weight file from its tensors' names and shapes.

    Names decide, so that models of unusual widths are recognised too. Shapes are asked only where families
    use the same names: SD 1.x and 2.x without text encoder differ in the width of the text states and in the
    layers around their attention, the refiner's UNet and LoRA files without text encoder in that width.
    """
    if any(_LORA_NAME.match(key) for key in keys):
        return Recognised("lora", network_family(keys))
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
    found = _unet(unet)
    if has("conditioner.embedders.0.model.") and not has("conditioner.embedders.1."):
        return Recognised("refiner")
    family = _text_family(has)
    if family is not None:
        return Recognised("checkpoint", family)
    return found if found.kind == "refiner" else Recognised("checkpoint", found.family)


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


def network_family(keys: Shapes) -> str | None:
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
    layers = (int(found[1]) for name in text if (found := re.search(r"encoder_layers_(\d+)_", name)))
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
