"""The blocks that a model runs one after the other, by the names that people weight them with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from lorapipe_engine.models.families import UNET_PREFIX

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
    if found := re.match(r"(input|output)_blocks\.(\d+)\.", path):
        return f"{'IN' if found[1] == 'input' else 'OUT'}{int(found[2]):02d}"
    if path.startswith("middle_block."):
        return "MID"
    return BASE if path.startswith(("time_embed.", "label_emb.")) else REST


def order_of(block: str) -> tuple[int, str]:
    """A key that sorts blocks in the order in which the model runs them."""
    first = ("TE1", "TE2", BASE, "IN", "MID", "OUT", REST)
    return next(i for i, start in enumerate(first) if block.startswith(start)), block
