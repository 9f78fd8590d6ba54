"""Whether a run fits the card, told before its weights are loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lorapipe_engine.datasets.scan import Dataset
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models import architecture
from lorapipe_engine.models.families import get_family, recognise
from lorapipe_engine.nn.attach import Kind
from lorapipe_engine.nn.base import Size, adapter_class
from lorapipe_engine.settings import TrainSettings
from lorapipe_engine.settings.preserve import read_preserve
from lorapipe_engine.train.base.sources import read_base, resolve
from lorapipe_engine.train.base.weights import Weights
from lorapipe_engine.train.families.clip import positions
from lorapipe_engine.train.memory.model import GIB, Load, Shapes, predict

LATENT_BYTES = 8 * 4 / 64  # of a pixel: mean and deviation of four channels in float32, one for 8 x 8 pixels


def memory_line(
    settings: TrainSettings, kind: Kind, dataset: Dataset, source: str | Path, dtype: torch.dtype, free: float
) -> str:
    """What the run with a network of this kind will take of ``free`` bytes, in words. Raises ConfigError, with
    what to change, if that is more."""
    if (other := uncounted(settings, source, dtype)) is not None:
        return f"memory: not known for {other}; the run begins without a forecast"
    unet, shapes = shapes_of(source, dtype)
    load = load_of(settings, kind, dataset, dtype, sdxl="te2" in shapes)
    wanted = predict(unet, shapes, load).gib
    if wanted * GIB <= free:
        return f"memory: about {wanted:.1f} GiB of {free / GIB:.1f} GiB that are free"
    ways = [
        f"{way.words}: {gib:.1f} GiB"
        for way in changes(settings, load)
        if (gib := predict(unet, shapes, way.load).gib) < wanted
    ]
    told = (
        f"; {'; '.join(ways)}" if ways else "; nothing is left to change but a smaller base or another card"
    )
    raise ConfigError(
        f"this run needs about {wanted:.1f} GiB, and {free / GIB:.1f} GiB of the card are free{told} "
        "(--ignore_memory trains all the same)"
    )


def uncounted(settings: TrainSettings, source: str | Path, dtype: torch.dtype) -> str | None:
    """What it is whose memory cannot be counted, in words: a slider, whose blocks are not fused, or a family without a
    UNet; None where it can."""
    if settings.data.slider is not None:
        return "a slider"
    path = resolve(source, dtype)
    if path.is_dir():
        return None
    with Weights([path]) as weights:
        family = recognise(weights.shapes).family
    return None if family is None or get_family(family).denoiser == "unet" else get_family(family).title


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


def load_of(settings: TrainSettings, kind: Kind, dataset: Dataset, dtype: torch.dtype, *, sdxl: bool) -> Load:
    """What the options and the pictures ask for."""
    model, data, network = settings.model, settings.data, settings.network
    rank = network.network_dim or (32 if sdxl else 64)
    count = partial(adapter_class(kind.algorithm).count, size=Size(rank, rank), options=kind.options)
    sizes = [picture.placement.bucket for picture in dataset.pictures]
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    cached = data.cache_text_encoder_outputs or data.cache_text_encoder_outputs_to_disk
    trains_text = not network.network_train_unet_only and not (sdxl and not any(_text_rates(settings)))
    return Load(
        width,
        height,
        max(dataset.batch_sizes),
        rank,
        weight_bytes=torch.empty(0, dtype=dtype).element_size(),
        optimizer=settings.optimizer.optimizer_type,
        checkpointing=model.gradient_checkpointing,
        tokens=positions(model.max_token_length) if trains_text else 0,
        text_there=not cached,
        latents=sum(w * h for w, h in sizes) * LATENT_BYTES,
        count=count,
        joined=is_joined(settings),
        averaged=settings.optimizer.ema_decay is not None or settings.optimizer.ema_width is not None,
    )


def is_joined(settings: TrainSettings) -> bool:
    """Whether steps hold the network to the base for captions of its own, in one pass with the batch's."""
    asked = read_preserve(settings.loss.preserve)
    return (
        asked is not None and asked.has_captions and bool(asked.weight) and not settings.loss.preserve_apart
    )


def _text_rates(settings: TrainSettings) -> Iterator[float]:
    yield from settings.optimizer.text_encoder_lr


@dataclass(frozen=True)
class Way:
    """A change that saves memory, on top of those before it: in words, what is asked for then, and its options."""

    words: str
    load: Load
    options: Mapping[str, Any]


def changes(settings: TrainSettings, load: Load, given: Collection[str] = ()) -> Iterator[Way]:
    """What can be changed, the cheapest first; not what the user gave."""
    if load.joined and "preserve_apart" not in given:
        load = replace(load, joined=False)
        yield Way("--preserve_apart", load, {"preserve_apart": True})
    if not load.checkpointing and "gradient_checkpointing" not in given:
        load = replace(load, checkpointing=True)
        yield Way("--gradient_checkpointing", load, {"gradient_checkpointing": True})
    batch = {"train_batch_size", "gradient_accumulation_steps"}
    if load.batch > 1 and batch.isdisjoint(given) and not (given and settings.data.dataset_config):
        steps = settings.optimizer.gradient_accumulation_steps * load.batch
        load = replace(load, batch=1)
        words = f"with --train_batch_size 1 --gradient_accumulation_steps {steps} too"
        yield Way(words, load, {"train_batch_size": 1, "gradient_accumulation_steps": steps})
    if load.optimizer.lower() == "adamw" and "optimizer_type" not in given:
        load = replace(load, optimizer="adamw8bit")
        yield Way("with --optimizer_type AdamW8bit too", load, {"optimizer_type": "AdamW8bit"})
    text = {"network_train_unet_only", "text_encoder_lr", "cache_text_encoder_outputs"}
    if (load.tokens or load.text_there) and text.isdisjoint(given):
        load = replace(load, tokens=0, text_there=False)
        words = "with --network_train_unet_only --cache_text_encoder_outputs too"
        yield Way(words, load, {"network_train_unet_only": True, "cache_text_encoder_outputs": True})
