"""Base models of a plan, looked at without being loaded: whether they are there, and which size they draw."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from lorapipe_engine.errors import LoraError
from lorapipe_engine.files.tensorfile import open_tensors
from lorapipe_engine.models.bases import DEMO, resolve_base
from lorapipe_engine.models.families import get_family, recognise

DEFAULT_SIDE = 512  # pixels
DEMO_SIDE = 64
TWO_ENCODERS_SIDE = 1024


@lru_cache(maxsize=256)
def check_model(name: str) -> None:
    """Raise InputError for a base or a VAE that is neither a file, a folder nor a hub id."""
    resolve_base(name)


@lru_cache(maxsize=256)
def trained_size(base: str | None) -> str:
    """The size in pixels that a base was trained on, as ``512x512``, by its file's header; that where it is unknown."""
    side = DEFAULT_SIDE if base is None else _trained_side(base)
    return f"{side}x{side}"


def _trained_side(base: str) -> int:
    path = Path(base).expanduser()
    if base == DEMO and not path.exists():
        return DEMO_SIDE
    if path.is_dir():
        return TWO_ENCODERS_SIDE if (path / "text_encoder_2").is_dir() else DEFAULT_SIDE
    if not path.is_file() or path.suffix.lower() != ".safetensors":
        return DEFAULT_SIDE
    try:
        with open_tensors(path) as file:
            family = recognise({name: info.shape for name, info in file.tensors.items()}).family
    except LoraError:
        return DEFAULT_SIDE  # what is wrong with the file is said when it is loaded
    return get_family(family).resolution if family else DEFAULT_SIDE
