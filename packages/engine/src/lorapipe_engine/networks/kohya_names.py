"""One name for a layer: whatever spelling a file has, networks are compared and added up under kohya's names."""

from __future__ import annotations

import re

from lorapipe_engine.models.families import get_family
from lorapipe_engine.models.keys import lora_name
from lorapipe_engine.networks.layers import layer_of


def canonical(name: str) -> str:
    """A module's name as the base's layers answer to it: kohya's prefix in the place of others."""
    return re.sub(r"^(oft|lycoris)_", "lora_", name)


def kohya_name(name: str, family: str | None) -> str:
    """The name that kohya's trainer gives to the layer of a module called ``name``; ``name`` if there is none.

    ``name`` is one of :mod:`lorapipe_engine.networks.describe`, of any prefix ("lora_", "oft_", "lycoris_", "unet.",
    "text_encoder."), in diffusers' or in LDM's numbering of blocks. Raises InputError for an unknown family.
    """
    layer = layer_of(name)
    if family is None or layer is None or layer.part not in get_family(family).lora_prefixes:
        return canonical(name)
    return lora_name(family, layer.part, layer.path)
