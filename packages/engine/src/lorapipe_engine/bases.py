"""What a user may call a base model by: a path, a hub id, or ``demo``."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from lorapipe_engine.errors import InputError, MissingExtra

DEMO = "demo"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILE_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".bin")


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
    """The demo's checkpoint, in the package ``lorapipe_demo``, which is found without being imported."""
    spec = find_spec("lorapipe_demo")
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place, "assets", "demo.safetensors")
        if path.is_file():
            return path
    raise MissingExtra("the base 'demo' lies in a package that is not installed: pip install lorapipe-demo")
