"""The families of base models that can be trained, each behind :class:`~.base.Family`."""

from __future__ import annotations

import importlib

import torch

from lorapipe_engine.models.families import get_family
from lorapipe_engine.train.base.model import BaseModel
from lorapipe_engine.train.families.base import Family


def open_family(
    base: BaseModel,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    vae_dtype: torch.dtype | None = None,
    max_token_length: int | None = None,
    clip_skip: int | None = None,
    waiting: bool = False,
) -> Family:
    """The family's class around a loaded base model, on ``device`` (see :class:`~.base.Family`)."""
    module, _, name = get_family(base.family).trainer.partition(":")
    kind: type[Family] = getattr(importlib.import_module(module), name)
    return kind(
        base,
        device=device,
        dtype=dtype,
        vae_dtype=vae_dtype,
        max_token_length=max_token_length,
        clip_skip=clip_skip,
        waiting=waiting,
    )
