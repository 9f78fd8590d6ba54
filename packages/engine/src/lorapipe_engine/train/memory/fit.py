"""Whether a run fits the card, told before its weights are loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lorapipe_engine.datasets.scan import Dataset
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models.families import get_family, is_text, recognise
from lorapipe_engine.settings import TrainSettings
from lorapipe_engine.settings.preserve import read_preserve
from lorapipe_engine.train.base.sources import read_base, resolve
from lorapipe_engine.train.base.stable_diffusion import outline
from lorapipe_engine.train.base.weights import Weights
from lorapipe_engine.train.families import open_family
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.families.clip import positions
from lorapipe_engine.train.memory.model import GIB, Load, Shapes, predict
from lorapipe_engine.train.memory.network import rows_of_run
from lorapipe_engine.train.network.arguments import NetworkArgs

LATENT_BYTES = 8 * 4 / 64  # of a pixel: mean and deviation of four channels in float32, one for 8 x 8 pixels


def memory_line(
    settings: TrainSettings,
    args: NetworkArgs,
    dataset: Dataset,
    source: str | Path,
    dtype: torch.dtype,
    free: float,
) -> str:
    """What the run with a network of these arguments will take of ``free`` bytes, in words. Raises ConfigError, with
    what to change, if that is more."""
    if (other := uncounted(source, dtype)) is not None:
        return f"memory: not known for {other}; the run begins without a forecast"
    family = outline_of(source, dtype)
    unet, shapes = shapes_of(family)
    load = load_of(settings, args, dataset, family)
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


def uncounted(source: str | Path, dtype: torch.dtype) -> str | None:
    """The title of the base's family where its memory cannot be counted, as it has no UNet; None where it can."""
    path = resolve(source, dtype)
    if path.is_dir():
        return None
    with Weights([path]) as weights:
        family = recognise(weights.shapes).family
    return None if family is None or get_family(family).denoiser == "unet" else get_family(family).title


def outline_of(source: str | Path, dtype: torch.dtype) -> Family:
    """A base's family on the meta device: its modules without values, from the shapes in its file. Raises
    InputError."""
    with ExitStack() as stack:
        base = outline(read_base(resolve(source, dtype), stack))
    return open_family(base, device="meta", dtype=dtype)


def shapes_of(family: Family) -> tuple[dict[str, Any], dict[str, Shapes]]:
    """The UNet's configuration, and the shapes of UNet and text encoders."""
    shapes: dict[str, Shapes] = {
        part: {name: tuple(value.shape) for name, value in module.named_parameters()}
        for part, module in family.parts.items()
    }
    return dict(family.denoiser.config), shapes


def load_of(settings: TrainSettings, args: NetworkArgs, dataset: Dataset, family: Family) -> Load:
    """What the options and the pictures ask for, of a family on the meta device. Raises ConfigError for options of the
    network that do not fit it, InputError for files that do not."""
    model, data, network = settings.model, settings.data, settings.network
    settings = replace(
        settings, network=replace(network, network_dim=network.network_dim or family.facts.rank)
    )
    rows = rows_of_run(settings, args, family)
    sizes = [picture.placement.bucket for picture in dataset.pictures]
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    cached = data.cache_text_encoder_outputs or data.cache_text_encoder_outputs_to_disk
    tokens = positions(model.max_token_length)
    return Load(
        width,
        height,
        max(dataset.batch_sizes),
        rows,
        weight_bytes=torch.empty(0, dtype=family.dtype).element_size(),
        optimizer=settings.optimizer.optimizer_type,
        checkpointing=model.gradient_checkpointing,
        tokens=tokens if any(is_text(row.part) for row in rows) else 0,
        context=tokens,
        text_there=not cached,
        latents=sum(w * h for w, h in sizes) * LATENT_BYTES,
        joined=is_joined(settings),
        averaged=settings.optimizer.ema_decay is not None or settings.optimizer.ema_width is not None,
    )


def is_joined(settings: TrainSettings) -> bool:
    """Whether steps hold the network to the base for captions of its own, in one pass with the batch's."""
    asked = read_preserve(settings.loss.preserve)
    return (
        asked is not None and asked.has_captions and bool(asked.weight) and not settings.loss.preserve_apart
    )


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
