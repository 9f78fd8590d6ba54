"""Masks: how much each part of a picture counts in the loss, from a folder of pictures or from transparency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lorapipe_engine.datasets.scan import Picture
from lorapipe_engine.train.data.latents import LatentJob, open_upright, put_in_place


def latent_mask(picture: Picture, job: LatentJob, size: tuple[int, int], *, alpha: bool) -> Tensor:
    """The mask of a picture placed as ``job`` has it, (1, h, w) in 0..1, for latents of ``size`` (h, w).

    Its own mask file goes before its transparency (``alpha``); without either all of it counts. A latent cell counts as
    much as its pixels do on the average.
    """
    if picture.mask is None and not alpha:
        return torch.ones(1, *size)
    pixels = _read(picture.mask, job) if picture.mask is not None else _read_alpha(job)
    return F.interpolate(pixels[None, None], size, mode="area")[0]


def _read(path: Path, job: LatentJob) -> Tensor:
    """The red channel of a mask file, placed as its picture is; (H, W) in 0..1."""
    with open_upright(path) as picture:
        return _values(put_in_place(picture.convert("RGB"), job), 0)


def _read_alpha(job: LatentJob) -> Tensor:
    with open_upright(job.path) as picture:
        if picture.mode != "RGBA":
            return torch.ones(job.placement.bucket[::-1])
        # Alone: resizing RGBA weighs colours by it.
        return _values(put_in_place(picture.getchannel("A"), job), None)


def _values(picture: object, channel: int | None) -> Tensor:
    values = np.array(picture, dtype=np.uint8)
    values = values if channel is None else values[..., channel]
    return torch.from_numpy(values.copy()).float() / 255
