"""The blocks that a model runs one after the other, by the names that people weight them with."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from types import MappingProxyType

from lorapipe_engine.models.families import UNET_PREFIX
from lorapipe_engine.models.keys import unet_to_ldm

BASE = "BASE"
# Parts of the text encoders can be weighted one by one; what is not named takes BASE's weight.
TEXT_NAMES: Mapping[str, str] = MappingProxyType({"te1": "TE1", "te2": "TE2"})
REST = "REST"  # the UNet outside its blocks


def block_of(part: str, ldm_path: str | None) -> str:
    """The block of a layer: "IN04", "MID", "OUT11"; "TE1", "TE2"; BASE for the embeddings of time and size, REST for
    the UNet's end (``out``) and for parts that are neither.
    """
    if part in TEXT_NAMES:
        return TEXT_NAMES[part]
    path = (ldm_path or "").removeprefix(UNET_PREFIX)
    if match := re.match(r"(input|output)_blocks\.(\d+)\.", path):
        return f"{'IN' if match[1] == 'input' else 'OUT'}{int(match[2]):02d}"
    if path.startswith("middle_block."):
        return "MID"
    return BASE if path.startswith(("time_embed.", "label_emb.")) else REST


def block_of_name(name: str, part: str, plain_up_blocks: Collection[int] = ()) -> str | None:
    """The block of a module by its name in a network file, dotted or flat, diffusers' or LDM's; None outside blocks.

    ``plain_up_blocks`` as in ``Family``.
    """
    if part in TEXT_NAMES:
        return TEXT_NAMES[part]
    flat = name.replace(".", "_")
    if match := re.search(r"(input|output)_blocks_(\d+)_", flat):
        return f"{'IN' if match[1] == 'input' else 'OUT'}{int(match[2]):02d}"
    if "middle_block" in flat or "mid_block" in flat:
        return "MID"
    match = re.search(r"(down|up)_blocks_(\d+)_([a-z]+)_(\d+)", flat)
    if match is None:
        return None
    path = f"{match[1]}_blocks.{match[2]}.{match[3]}.{match[4]}"
    ldm = unet_to_ldm(f"{path}.conv", 2, plain_up_blocks) or unet_to_ldm(path, 2, plain_up_blocks)
    return block_of("unet", f"{ldm}.") if ldm else None


def order_of(block: str) -> tuple[int, str]:
    """A key that sorts blocks in the order in which the model runs them."""
    first = ("TE1", "TE2", BASE, "IN", "MID", "OUT", REST)
    return next(i for i, start in enumerate(first) if block.startswith(start)), block
