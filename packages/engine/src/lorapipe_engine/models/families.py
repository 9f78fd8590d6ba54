"""The table of model families, and recognising what a weight file is from the names inside it."""

from __future__ import annotations

from lorapipe_engine.errors import InputError
from lorapipe_engine.models.family import Family, Kind, Recognised, Shapes, is_text
from lorapipe_engine.models.ldm import UNET_PREFIX, VAE_PREFIX
from lorapipe_engine.models.sd1 import SD1
from lorapipe_engine.models.sd2 import SD2
from lorapipe_engine.models.sdxl import SDXL
from lorapipe_engine.models.stable_diffusion import network_of_stable_diffusion, recognise_stable_diffusion

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
    "network_family",
    "recognise",
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


def _claimed(keys: Shapes) -> Recognised | None:
    """What the first row says that knows the file as its own."""
    answers = (family.recognise(keys) for family in FAMILIES.values() if family.recognise is not None)
    return next((answer for answer in answers if answer is not None), None)
