"""The table of model families, and recognising what a weight file is from the names inside it."""

from __future__ import annotations

from lorapipe_engine.errors import InputError
from lorapipe_engine.models.family import Family, Kind, Recognised, Shapes, is_text
from lorapipe_engine.models.ldm import UNET_PREFIX, VAE_PREFIX
from lorapipe_engine.models.sd1 import SD1
from lorapipe_engine.models.sd2 import SD2
from lorapipe_engine.models.sdxl import SDXL
from lorapipe_engine.models.stable_diffusion import (
    certain_families,
    mix_of_stable_diffusion,
    network_of_refiner,
    network_of_stable_diffusion,
    recognise_stable_diffusion,
)

__all__ = [
    "FAMILIES",
    "SD1",
    "UNET_PREFIX",
    "VAE_PREFIX",
    "Family",
    "Kind",
    "Recognised",
    "Shapes",
    "get_family",
    "is_text",
    "mixed_families",
    "network_family",
    "possible_families",
    "recognise",
    "strange_network",
]

FAMILIES: dict[str, Family] = {family.name: family for family in (SD1, SD2, SDXL)}


def get_family(name: str) -> Family:
    """The family called ``name``. Raises InputError for a name that is not in the table."""
    if name not in FAMILIES:
        raise InputError(f"unknown model family {name!r}; known are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def recognise(keys: Shapes) -> Recognised:
    """Kind and family of a weight file from its tensors' names and shapes."""
    return _claimed(keys) or recognise_stable_diffusion(keys)


def network_family(keys: Shapes) -> str | None:
    """Family of a network file, from the names and shapes of its tensors."""
    claimed = _claimed(keys)
    return network_of_stable_diffusion(keys) if claimed is None else claimed.family


def possible_families(keys: Shapes) -> frozenset[str]:
    """The families that a network file's names and shapes do not rule out."""
    claimed = _claimed(keys)
    if claimed is not None:
        return frozenset() if claimed.family is None else frozenset({claimed.family})
    return certain_families(keys) or frozenset(FAMILIES)


def mixed_families(keys: Shapes) -> tuple[tuple[str, str], tuple[str, str]] | None:
    """Titles of two families whose names are in one network file, each with a name that shows it."""
    return None if _claimed(keys) is not None else mix_of_stable_diffusion(keys)


def strange_network(keys: Shapes) -> str | None:
    """The name of a model that shares the names of a family here and is none of it: the SDXL refiner."""
    return "the SDXL refiner" if _claimed(keys) is None and network_of_refiner(keys) else None


def _claimed(keys: Shapes) -> Recognised | None:
    """What the first row says that knows the file as its own."""
    answers = (family.recognise(keys) for family in FAMILIES.values() if family.recognise is not None)
    return next((answer for answer in answers if answer is not None), None)
