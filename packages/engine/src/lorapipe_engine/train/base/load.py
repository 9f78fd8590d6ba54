"""Load a base model of any family: its file tells which family it is, and the family's row how it is loaded.

Nothing is downloaded for a local model (save CLIP's vocabulary where it is neither beside the model nor in the hub's
cache).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import torch

from lorapipe_engine.models.families import get_family, recognise
from lorapipe_engine.models.family import LOAD_SD
from lorapipe_engine.train.base.model import BaseModel
from lorapipe_engine.train.base.sources import resolve
from lorapipe_engine.train.base.vae_form import VaeForm
from lorapipe_engine.train.base.weights import Weights

__all__ = ["BaseModel", "load_base"]

Loader = Callable[..., BaseModel]


def load_base(
    source: str | Path,
    *,
    vae: str | Path | None = None,
    v2: bool | None = None,
    dtype: torch.dtype = torch.float32,
    tokenizer_dir: Path | None = None,
    vae_form: VaeForm | None = None,
) -> BaseModel:
    """Load a base model from a .safetensors or .ckpt file, a diffusers folder or a hub id, in ``dtype``.

    ``vae`` replaces the VAE (a file, a folder or a hub id); ``v2`` True insists on SD 2.x; ``tokenizer_dir``
    holds the tokenizer; ``vae_form`` is what the VAE's file does not tell. Raises InputError with one line for anything
    that is no base model.
    """
    vae_path = resolve(vae, dtype) if vae is not None else None
    path = resolve(source, dtype)
    with ExitStack() as stack:
        weights = stack.enter_context(Weights([path])) if path.is_file() else None
        module, _, name = _loader(weights).partition(":")
        load: Loader = getattr(importlib.import_module(module), name)
        model = load(
            source, path, weights, vae_path=vae_path, v2=v2, dtype=dtype, tokenizer_dir=tokenizer_dir
        )
    if vae_form is not None:
        vae_form.apply(model.vae)
    return model


def _loader(weights: Weights | None) -> str:
    """The loader of the file's family. Folders, and files that are no base, are for Stable Diffusion's, which says what
    they are."""
    if weights is None:
        return LOAD_SD
    file = recognise(weights.shapes)
    return get_family(file.family).loader if file.kind == "checkpoint" and file.family else LOAD_SD
