"""How a file spells the names of its modules: what decides who finds their layers."""

from __future__ import annotations

import re

from lorapipe_engine.networks.describe import Network, NetworkModule
from lorapipe_engine.networks.kohya_names import kohya_name

# Flat names.
KOHYA, KOHYA_OTHER, KOHYA_BARE_TEXT = (
    "kohya",
    "kohya, blocks of another program",
    "kohya, text without text_model",
)
LYCORIS, KOHYA_OFT = "LyCORIS' wrapper", "kohya's OFT"
# Dotted names.
PEFT, COMFY, OMI, LDM = "PEFT", "ComfyUI", "OMI", "checkpoint"
PIPELINE, MIXED, PROCESSOR, OLD_TEXT = (
    "diffusers",
    "diffusers, mixed",
    "diffusers 0.18-0.21",
    "diffusers up to 0.17",
)
BARE, BARE_TEXT, OTHER = "diffusers, part not named", "diffusers, text without text_model", "unknown"

_ATTENTION = re.compile(r"\.attn[12]\.(processor\.)?to_(q|k|v|out)(\.0)?(_lora)?$")
_LDM = re.compile(r"(input_blocks|middle_block|output_blocks|out|time_embed|label_emb)\.\d")


def spelling_of(module: NetworkModule, network: Network) -> str:
    """The scheme of a module's names, one of the constants of this file."""
    path = module.path
    if re.match(r"(lora|lycoris|oft)_", path):
        return _flat(module, network.family)
    if path.startswith("base_model.model."):
        return PEFT
    if path.startswith(("diffusion_model.", "model.diffusion_model.", "text_encoders.")):
        return COMFY
    if path.startswith(("clip_l.", "clip_g.")) or _LDM.match(path.removeprefix("unet.")):
        return OMI if path.startswith(("clip", "unet.")) else LDM
    if path.startswith("text_encoder"):
        if re.search(r"self_attn\.to_\w+$", re.sub(r"_lora$", "", path)):
            return OLD_TEXT
        return PIPELINE if ".text_model." in path or "text_projection" in path else BARE_TEXT
    if path.startswith("unet."):
        key = next(iter(module.keys.values()))
        if ".processor." in key:
            return PROCESSOR
        return MIXED if is_attention(module) and ".lora." in key else PIPELINE
    return BARE if module.part in ("unet", "te1", "te2") else OTHER


def _flat(module: NetworkModule, family: str | None) -> str:
    head, _, rest = module.path.partition("_")
    if head == "oft":
        return KOHYA_OFT
    if head == "lycoris":
        return LYCORIS
    if re.match(r"te\d?_(encoder_layers|embeddings|final_layer_norm)", rest):
        return KOHYA_BARE_TEXT
    if module.part == "unet" and family is not None and kohya_name(module.name, family) != module.path:
        return KOHYA_OTHER
    return KOHYA


def is_attention(module: NetworkModule) -> bool:
    """Whether the module changes q, k, v or the output of an attention of the UNet."""
    return _ATTENTION.search(module.path) is not None or bool(
        re.search(r"_attn[12]_to_(q|k|v|out_0)$", module.path)
    )


def is_text_attention(module: NetworkModule) -> bool:
    """Whether the module changes q, k, v or the output of an attention of a text encoder."""
    return module.part != "unet" and bool(
        re.search(r"self_attn[._](q_proj|k_proj|v_proj|out_proj)$", module.name)
    )
