"""The families of base models that can be trained, each behind :class:`~.base.Family`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import torch

from lorapipe_engine.models.families import get_family
from lorapipe_engine.train.families.base import Family

if TYPE_CHECKING:
    from lorapipe_engine.train.base.load import BaseModel


def open_family(
    base: BaseModel,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    vae_dtype: torch.dtype | None = None,
    chunks: int = 3,
    waiting: bool = False,
) -> Family:
    """The family's class around a loaded base model, on ``device`` (see :class:`~.base.Family`)."""
    module, _, name = get_family(base.family).trainer.partition(":")
    kind: type[Family] = getattr(importlib.import_module(module), name)
    return kind(base, device=device, dtype=dtype, vae_dtype=vae_dtype, chunks=chunks, waiting=waiting)
