"""One name for a layer: whatever spelling a file has, networks are compared and added up under kohya's names."""

from __future__ import annotations

import re

from lorapipe_engine.command.text import counted
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import quote
from lorapipe_engine.models.families import get_family
from lorapipe_engine.models.keys import lora_name
from lorapipe_engine.networks.describe import Network
from lorapipe_engine.networks.layers import Layer, layer_of

SHOWN = 5


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


def known_layer(name: str, family: str) -> Layer | None:
    """The layer of the family's that a module's name means; None where it follows no pattern of its layers.

    Dotted names can be of anything: what they mean is a layer where its flat name is one.
    """
    layer = layer_of(name)
    if layer is None or layer.part not in get_family(family).lora_prefixes:
        return None
    return layer if layer_of(lora_name(family, layer.part, layer.path)) is not None else None


def text_encoder_alone(network: Network) -> list[str]:
    """A note where a network changes the one text encoder that SD 1.x and SDXL share, and nothing tells of which."""
    if network.family != "sd1" or set(network.parts) != {"te1"}:
        return []
    return [
        "changes a text encoder alone, which SD 1.x and SDXL both have, and is named for SD 1.x; lora-convert "
        "--family sdxl names it for SDXL"
    ]


def first_text_encoder(network: Network) -> list[str]:
    """A note where a network for SDXL names its first text encoder as SD 1.x names its only one."""
    if network.family != "sdxl":
        return []
    odd = [
        module.path for module in network.modules.values() if re.match(r"(lora|oft|lycoris)_te_", module.path)
    ]
    if not odd:
        return []
    return [
        f"is for SDXL, but {counted(len(odd), 'module', 'are')} named as SD 1.x's text encoder "
        f"({quote(odd[0])[1:-1]}); {'it is' if len(odd) == 1 else 'they are'} taken for SDXL's first"
    ]


def layer_named_twice(network: Network, family: str | None) -> str | None:
    """The line that says that two modules of a file are one layer of the family's; None where none are.

    Which of the two counts no file tells: some programs take the first, some the last, some both.
    """
    seen: dict[str, str] = {}
    for module in network.modules.values():
        if module.keys.keys() == {"alpha"}:  # left behind, it changes nothing
            continue
        name = kohya_name(module.name, family)
        if name in seen:
            one, two = (quote(word)[1:-1] for word in (seen[name], module.path))
            return f"{network.path}: names one layer twice, as {one} and as {two}"
        seen[name] = module.path
    return None


def names_in_kohya(network: Network) -> dict[str, str]:
    """Kohya's name of every module of a network, by the module's.

    Raises InputError for a network of another or of no known family, and for modules that are no layer of it.
    """
    if network.foreign is not None:
        raise InputError(f"{network.path}: is for {network.title}, whose names are not known here")
    if network.family is None:
        raise InputError(
            f"{network.path}: its names do not tell which model it is for; lora-convert has --family to say it"
        )
    facts = get_family(network.family)
    names: dict[str, str] = {}
    strange = []
    for name in network.modules:
        layer = known_layer(name, facts.name)
        if layer is None:
            strange.append(quote(name)[1:-1])
        else:
            names[name] = lora_name(facts.name, layer.part, layer.path)
    if strange:
        more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
        raise InputError(
            f"{network.path}: has no name of kohya's for {', '.join(strange[:SHOWN])}{more}: no layer of {facts.title}"
        )
    return names
