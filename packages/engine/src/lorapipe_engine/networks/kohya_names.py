"""One name for a layer: whatever spelling a file has, networks are added up under kohya's names.

Names with underscores do not tell where the dots were, except in front, where blocks are numbered; and that is all
that has to be known to go from one numbering of the UNet's blocks to the other.
"""

from __future__ import annotations

import re

from lorapipe_engine.models.families import get_family
from lorapipe_engine.models.keys import lora_name, unet_to_diffusers
from lorapipe_engine.networks.describe import part_of

_FLAT = re.compile(r"lora_(?:unet|te[12]?)_(.+)", re.DOTALL)
_DOTTED = re.compile(r"(?:unet|text_encoder(?:_2)?)\.(.+)", re.DOTALL)
_TEXT_MODEL = re.compile(r"encoder_layers_|embeddings_|final_layer_norm")

# Beginnings of names in the UNet with the dots they had: (pattern, replacement), diffusers' and LDM's apart.
_DIFFUSERS = (
    (r"(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_", r"\1_blocks.\2.\3.\4."),
    (r"mid_block_(resnets|attentions)_(\d+)_", r"mid_block.\1.\2."),
    (r"(time|add)_embedding_(linear_\d)$", r"\1_embedding.\2"),
    (r"(conv_in|conv_out|conv_norm_out)$", r"\1"),
)
_LDM = (
    (r"(input|output)_blocks_(\d+)_(\d)_(in_layers|out_layers|emb_layers)_(\d)$", r"\1_blocks.\2.\3.\4.\5"),
    (r"(input|output)_blocks_(\d+)_(\d)_", r"\1_blocks.\2.\3."),
    (r"input_blocks_0_0$", r"input_blocks.0.0"),
    (r"middle_block_(\d)_(in_layers|out_layers|emb_layers)_(\d)$", r"middle_block.\1.\2.\3"),
    (r"middle_block_(\d)_", r"middle_block.\1."),
    (r"time_embed_(\d)$", r"time_embed.\1"),
    (r"label_emb_0_(\d)$", r"label_emb.0.\1"),
    (r"out_(\d)$", r"out.\1"),
)


def canonical(name: str) -> str:
    """A module's name as the base's layers answer to it: kohya's prefix in the place of others."""
    return re.sub(r"^(oft|lycoris)_", "lora_", name)


def kohya_name(name: str, family: str | None) -> str:
    """The name that kohya's trainer gives to the layer of a module called ``name``; ``name`` if there is none.

    ``name`` is one of :mod:`lorapipe_engine.networks.describe`, of any prefix ("lora_", "oft_", "lycoris_", "unet.",
    "text_encoder."), in diffusers' or in LDM's numbering of blocks. Raises InputError for an unknown family.
    """
    name, part = canonical(name), part_of(name)
    if family is None or part not in get_family(family).lora_prefixes:
        return name
    if dotted := _DOTTED.fullmatch(name):
        return lora_name(family, part, dotted[1])
    flat = _FLAT.fullmatch(name)
    if flat is None:
        return name
    if part != "unet":
        path = flat[1]
        text = f"text_model_{path}" if _TEXT_MODEL.match(path) else path
        return f"{get_family(family).lora_prefixes[part]}_{text}"
    path = _diffusers_path(flat[1])
    return name if path is None else lora_name(family, part, path)


def _diffusers_path(flat: str) -> str | None:
    """``down_blocks_1_attentions_0_proj_in`` or ``input_blocks_4_1_proj_in`` -> ``down_blocks.1.attentions.0.proj_in``.

    Only dots that numberings differ in are sure to be there; None for names of another pattern.
    """
    found = _dotted(flat, _DIFFUSERS)
    if found is None and (ldm := _dotted(flat, _LDM)):
        found = unet_to_diffusers(ldm)
    return found


def _dotted(flat: str, patterns: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, replacement in patterns:
        path, count = re.subn(f"^{pattern}", replacement, flat)
        if count:
            return path
    return None
