"""What a user may call a base model by: a path, a hub id, or ``demo``; and what a file is that is none."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from lorapipe_engine.errors import InputError, MissingExtra
from lorapipe_engine.models.families import FAMILIES, Recognised

DEMO = "demo"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_KINDS: Mapping[str, str] = {
    "lora": "a LoRA",
    "vae": "a VAE",
    "unet": "a UNet alone, without text encoder and VAE",
    "text_encoder": "a text encoder alone",
    "refiner": "the SDXL refiner",
    "unknown": "nothing that is known here",
}
_ADVICE: Mapping[str, str] = {
    "lora": "; it goes on top of one",
    "vae": "; it can replace one's with --vae",
    "unet": "; give the whole checkpoint",
    "text_encoder": "; give the whole checkpoint",
    "refiner": ", which no LoRA is trained on; give the SDXL base model",
    "unknown": " of Stable Diffusion 1.x, 2.x or SDXL",
}


def resolve_base(name: str) -> Path | str:
    """The file or folder that ``name`` stands for, or the hub id that it is.

    Raises InputError where it is none of them, MissingExtra for ``demo`` without its package.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name == DEMO:
        return demo_base()
    if _HUB_ID.fullmatch(name) and not name.endswith(_FILE_SUFFIXES):
        return name
    raise InputError(f"{name}: no such file or folder, and no hub id (owner/name) either")


def demo_base() -> Path:
    """The demo's checkpoint. Raises MissingExtra where its package is not installed."""
    return demo_asset("demo.safetensors", "base")


def demo_asset(name: str, what: str) -> Path:
    """A file or folder of the package ``lorapipe_demo``, which is found without being imported.

    ``what``: what 'demo' is the name of, as "base". Raises MissingExtra where the package is not installed.
    """
    spec = find_spec("lorapipe_demo")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place, "assets", name)
        if path.exists():
            return path
    raise MissingExtra(
        f"the {what} 'demo' lies in a package that is not installed: pip install ./packages/demo in the repository"
    )


def describe_kind(model: Recognised) -> str:
    """What a recognised file is, in words: "a LoRA", "a Stable Diffusion XL checkpoint"."""
    family = FAMILIES[model.family].title if model.family else ""
    if model.kind == "checkpoint":
        return f"a {family} checkpoint" if family else "a checkpoint of a family that is not known here"
    return f"{_KINDS[model.kind]} for {family}" if model.kind == "lora" and family else _KINDS[model.kind]


def explain_base(model: Recognised) -> str | None:
    """Why a recognised file is no base model, and what to give instead; None if it is one."""
    if model.kind == "checkpoint" and model.family:
        return None
    kind = "unknown" if model.kind == "checkpoint" else model.kind
    return f"{describe_kind(model)}, not a base model{_ADVICE[kind]}"
