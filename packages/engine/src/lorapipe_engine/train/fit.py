"""Whether a run fits the card, told before its weights are loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lorapipe_engine.datasets.scan import Dataset
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings import TrainSettings
from lorapipe_engine.train import architecture
from lorapipe_engine.train.memory import GIB, Load, Shapes, predict
from lorapipe_engine.train.sources import read_base, resolve

LATENT_BYTES = 8 * 4 / 64  # of a pixel: mean and deviation of four channels in float32, one for 8 x 8 pixels


def memory_line(
    settings: TrainSettings, dataset: Dataset, source: str | Path, dtype: torch.dtype, free: float
) -> str:
    """What the run will take of ``free`` bytes, in words. Raises ConfigError, with what to change, if that is more."""
    unet, shapes = shapes_of(source, dtype)
    load = load_of(settings, dataset, dtype, sdxl="te2" in shapes)
    wanted = predict(unet, shapes, load).gib
    if wanted * GIB <= free:
        return f"memory: about {wanted:.1f} GiB of {free / GIB:.1f} GiB that are free"
    ways = [
        f"{words}: {found:.1f} GiB"
        for words, other in changes(settings, load)
        if (found := predict(unet, shapes, other).gib) < wanted
    ]
    told = (
        f"; {'; '.join(ways)}" if ways else "; nothing is left to change but a smaller base or another card"
    )
    raise ConfigError(
        f"this run needs about {wanted:.1f} GiB, and {free / GIB:.1f} GiB of the card are free{told} "
        "(--ignore_memory trains all the same)"
    )


def shapes_of(source: str | Path, dtype: torch.dtype) -> tuple[dict[str, Any], dict[str, Shapes]]:
    """The UNet's configuration, and the shapes of UNet and text encoders, of a base that is not loaded."""
    with ExitStack() as stack:
        draft = read_base(resolve(source, dtype), stack)
        shapes: dict[str, Shapes] = {
            part: {name: piece.shape for name, piece in pieces.items()}
            for part, pieces in draft.parts.items()
            if part != "vae"
        }
        heads = architecture.wide_heads  # how many there are does not matter here
        projection = shapes.get("te2", {}).get("text_projection.weight")
        pooled = projection[0] if projection else None
        return architecture.unet_config(shapes["unet"], heads, pooled), shapes


def load_of(settings: TrainSettings, dataset: Dataset, dtype: torch.dtype, *, sdxl: bool) -> Load:
    """What the options and the pictures ask for."""
    model, data, network = settings.model, settings.data, settings.network
    sizes = [picture.placement.bucket for picture in dataset.pictures]
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    cached = data.cache_text_encoder_outputs or data.cache_text_encoder_outputs_to_disk
    trains_text = not network.network_train_unet_only and not (sdxl and not any(_text_rates(settings)))
    return Load(
        width,
        height,
        max(dataset.batch_sizes),
        network.network_dim or (32 if sdxl else 64),
        weight_bytes=torch.empty(0, dtype=dtype).element_size(),
        optimizer=settings.optimizer.optimizer_type,
        checkpointing=model.gradient_checkpointing,
        tokens=model.max_token_length // 75 * 77 if trains_text else 0,
        text_there=not cached,
        latents=sum(w * h for w, h in sizes) * LATENT_BYTES,
    )


def _text_rates(settings: TrainSettings) -> Iterator[float]:
    yield from settings.optimizer.text_encoder_lr


def changes(settings: TrainSettings, load: Load) -> Iterator[tuple[str, Load]]:
    """What can be changed, the cheapest first, each on top of those before it."""
    if not load.checkpointing:
        load = replace(load, checkpointing=True)
        yield "--gradient_checkpointing", load
    if load.batch > 1:
        steps = settings.optimizer.gradient_accumulation_steps * load.batch
        load = replace(load, batch=1)
        yield f"with --train_batch_size 1 --gradient_accumulation_steps {steps} too", load
    if load.optimizer.lower() == "adamw":
        load = replace(load, optimizer="adamw8bit")
        yield "with --optimizer_type AdamW8bit too", load
    if load.tokens or load.text_there:
        load = replace(load, tokens=0, text_there=False)
        yield "with --network_train_unet_only --cache_text_encoder_outputs too", load
