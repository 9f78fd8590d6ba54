"""What SD 1.x, SD 2.x and SDXL share: targets, blocks, and telling their files apart."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
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
_CONTEXT_KEY = re.compile(r"(.*attn2[._]to_[kv])\.(.+)")
# Tensors whose numbers of columns, multiplied, are the layer's inputs: of each group the first that is there.
_CONTEXT_COLUMNS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("weight", "lora_down.weight", "lora_A.weight", "hada_w1_b", "diff"),),
    (("lokr_w1", "lokr_w1_b"), ("lokr_w2", "lokr_w2_b")),
)
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


# What layers of one family alone are called, with "_" for every dot and without the first word of flat names. SDXL has
# three levels, of which the first has no attention; SD 1.x and 2.x have four, of which the last has none.
_XL_NAMES = re.compile(
    r"(te2|text_encoder_2)_|unet_(add_embedding|label_emb)_|unet_\w*transformer_blocks_[1-9]"
    r"|unet_up_blocks_0_attentions_|unet_output_blocks_(?:[012]_1_(?!conv)|2_2_)"
)
_OLD_NAMES = re.compile(
    r"unet_(down_blocks_(0_attentions|2_downsamplers|3)|up_blocks_(2_attentions|2_upsamplers|3))_"
    r"|unet_input_blocks_([12]_1|9|1[01])_|unet_output_blocks_([6-9]_1|8_2|9|1[01])_"
)
_FIRST_TEXT_LAYER = re.compile(r"(?:te1?|text_encoder)_(?:text_model_)?encoder_layers_(\d+)_")
_XL_WIDTH, _REFINER_WIDTH = 2048, 1280
_OLD_TITLE = "Stable Diffusion 1.x or 2.x"


def _signs(keys: Shapes) -> dict[str, str]:
    """What a network's names and shapes are sure signs of, each with the first name that shows it: "sdxl", "sd1",
    "sd2", "old" for either of these two, "refiner".
    """
    signs: dict[str, str] = {}
    for key in keys:
        name = _plain_name(key)
        if _XL_NAMES.match(name):
            signs.setdefault("sdxl", key)
        if _OLD_NAMES.match(name):
            signs.setdefault("old", key)
        if (layer := _FIRST_TEXT_LAYER.match(name)) and int(layer[1]) >= 12:
            signs.setdefault("sd2", key)
    for width, key in _context_widths({k: s for k, s in keys.items() if _plain_name(k).startswith("unet_")}):
        row = {**_WIDTHS, _XL_WIDTH: "sdxl", _REFINER_WIDTH: "refiner"}.get(width)
        if row is not None:
            signs.setdefault(row, key)
    return signs


def _plain_name(key: str) -> str:
    """Dots and underscores alike: kohya's, LyCORIS' and PEFT's names then read the same."""
    return re.sub(r"^(lora|lycoris|oft)_", "", key.replace(".", "_"))


def network_of_refiner(keys: Shapes) -> bool:
    """Whether a network is for the SDXL refiner, whose text states have a width of their own."""
    return "refiner" in _signs(keys)


def mix_of_stable_diffusion(keys: Shapes) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """Titles of two families whose names are in one network, each with a name that shows it; None for one family."""
    signs = _signs(keys)
    old = next(((key, signs[key]) for key in ("sd1", "sd2", "old") if key in signs), None)
    titles = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "old": _OLD_TITLE}
    if "sdxl" in signs and old is not None:
        return ("Stable Diffusion XL", signs["sdxl"]), (titles[old[0]], old[1])
    if "sd1" in signs and "sd2" in signs:
        return (titles["sd1"], signs["sd1"]), (titles["sd2"], signs["sd2"])
    return None


def certain_families(keys: Shapes) -> frozenset[str]:
    """The families of which a network's names and shapes are sure signs; none where they rule nothing out."""
    signs = _signs(keys)
    for sign, families in (("sdxl", "sdxl"), ("sd2", "sd2"), ("sd1", "sd1"), ("old", "sd1 sd2")):
        if sign in signs:
            return frozenset(families.split())
    return frozenset()


def network_of_stable_diffusion(keys: Shapes) -> str | None:
    """Family of a network file, from sure signs, else from the custom of programs."""
    signs = _signs(keys)
    for family, certain in (("sdxl", {"sdxl"}), ("sd2", {"sd2"}), ("sd1", {"sd1", "old"})):
        if certain & signs.keys():
            return family
    names = [_plain_name(key) for key in keys]
    unet = [name for name in names if name.startswith("unet_")]
    text = [name for name in names if re.match(r"te1?_|text_encoder_", name)]
    blocks = [name for name in unet if re.match(r"unet_(input|output|middle|down|up|mid)_block", name)]
    if not blocks and (unet or not text):
        return None
    # Kohya's name for SDXL's first text encoder, and checkpoint names in the UNet, are SDXL's own custom.
    if any(name.startswith("te1_") for name in text):
        return "sdxl"
    return "sdxl" if any(re.match(r"unet_(input|output|middle)_block", name) for name in blocks) else "sd1"


def _context_widths(shapes: Shapes) -> Iterator[tuple[int, str]]:
    """Widths of the text states, by every cross-attention whose tensors show it, each with a name."""
    modules: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in shapes.items():
        if (match := _CONTEXT_KEY.fullmatch(key)) and len(shape) >= 2:
            modules.setdefault(match[1], {})[match[2]] = shape
    for name, own in modules.items():
        for ends in _CONTEXT_COLUMNS:
            factors = [next((own[end] for end in group if end in own), None) for group in ends]
            columns = [shape[1] for shape in factors if shape is not None]
            if len(columns) == len(ends):
                yield math.prod(columns), name
                break


def _context_width(shapes: Shapes) -> int | None:
    """Width of the text states, from the first cross-attention found."""
    return next((width for width, _ in _context_widths(shapes)), None)


def _starts_in(keys: Iterable[str]) -> Callable[..., bool]:
    """A question: does any key start with one of the prefixes?"""
    return lambda *prefixes: any(key.startswith(prefixes) for key in keys)
