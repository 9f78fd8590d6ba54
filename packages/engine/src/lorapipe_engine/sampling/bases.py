"""Base models of a plan, looked at without being loaded: whether they are there, which size they draw, and whether they
predict flow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lorapipe_engine.errors import LoraError
from lorapipe_engine.files.folders import read_config
from lorapipe_engine.files.tensorfile import open_tensors
from lorapipe_engine.models import predictions
from lorapipe_engine.models.bases import DEMO, resolve_base
from lorapipe_engine.models.families import get_family, recognise
from lorapipe_engine.models.predictions import FLOW

DEFAULT_SIDE = 512  # pixels
DEMO_SIDE = 64
TWO_ENCODERS_SIDE = 1024


@dataclass(frozen=True)
class Told:
    """What the user says of a base because its file does not. ``flow_shift``: of a base that predicts flow, None where
    it is none. ``vae_scale``, ``vae_shift``: of latents, None is the base's; ``vae_reflects``: edges are mirrored."""

    flow_shift: float | None = None
    vae_scale: float | None = None
    vae_shift: float | None = None
    vae_reflects: bool = False


NOTHING_TOLD = Told()


@lru_cache(maxsize=4096)
def says_flow(base: str | None) -> bool:
    """Whether the file or folder of a base says that it predicts flow, or the file of a network that its base did."""
    path = Path(base or "").expanduser()
    try:
        if path.is_dir():
            scheduler = read_config(path / "scheduler" / "scheduler_config.json")
            name = str(scheduler.get("_class_name", ""))
            return name.startswith("FlowMatch") or scheduler.get("prediction_type") == FLOW.name
        if not path.is_file() or path.suffix.lower() != ".safetensors":
            return False
        with open_tensors(path) as file:
            return predictions.says_flow(file.metadata)
    except LoraError:
        return False  # what is wrong with the file is said when it is loaded


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
