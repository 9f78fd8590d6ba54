"""Checkpoints side by side: which tensor of one answers to which of the others, and what the result will hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lorapipe_engine.command.text import counted
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.files.dtypes import FLOAT_DTYPES
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.tensorfile import WeightFile, quote
from lorapipe_engine.models.bases import describe_kind, resolve_base
from lorapipe_engine.models.blocks import block_of
from lorapipe_engine.models.families import UNET_PREFIX, VAE_PREFIX, recognise
from lorapipe_engine.models.keys import find_layout, locate, vae_to_ldm
from lorapipe_engine.networks.scaled import refuse_scaled

EMA = "model_ema."
# What programs read of a checkpoint beside the layers.
_MARKS = frozenset({"v_pred", "ztsnr", "alphas_cumprod", "edm_vpred.sigma_max", "edm_vpred.sigma_min"})
_MODEL = (UNET_PREFIX, VAE_PREFIX, "cond_stage_model.", "conditioner.")
_TEXT = "cond_stage_model.transformer."


@dataclass(frozen=True)
class Source:
    """A tensor of one of the files."""

    file: WeightFile
    key: str


@dataclass(frozen=True)
class Entry:
    """A tensor of the result: where it comes from, A first; one source alone is copied. ``block`` tells its ratio."""

    key: str
    sources: tuple[Source, ...]
    block: str
    layer: bool
    shape: tuple[int, ...]


@dataclass
class Plan:
    """All tensors of the result, and notes on what was left out or not merged."""

    entries: dict[str, Entry] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def open_model(name: str) -> tuple[Path, WeightFile, str]:
    """Path, open file and family of a checkpoint. Raises InputError for anything else."""
    path = resolve_base(name)
    if not isinstance(path, Path) or path.is_dir():
        raise InputError(f"{name}: give models as single files (.safetensors or .ckpt)")
    file = open_weights(path)
    recognised = recognise({key: info.shape for key, info in file.tensors.items()})
    if recognised.kind not in ("checkpoint", "unet") or recognised.family is None:
        file.close()
        raise InputError(
            f"{name}: this is {describe_kind(recognised)}, not a checkpoint of SD 1.x, SD 2.x or SDXL"
        )
    try:
        refuse_scaled(file)
    except InputError:
        file.close()
        raise
    return path, file, recognised.family


def plan_models(
    files: Sequence[WeightFile], family: str, *, ema: str, prune: bool, vae: Mapping[str, Source] | None
) -> Plan:
    """Match the tensors of all models by name. Raises InputError for shapes that do not fit."""
    first, *rest = files
    plan = Plan()
    if ema == "use":
        plan.notes += average_notes(files)
    layout = find_layout(first.tensors)
    missing = dropped = 0
    for key, info in first.tensors.items():
        if (key.startswith(EMA) and (ema != "keep" or prune)) or (prune and not is_wanted(key)):
            dropped += 1
            continue
        places = locate(key, info.shape, family, layout)
        part = places[0].part if places else ""
        block = block_of(part, key if part == "unet" else None)
        layer = bool(places) or key.startswith(EMA)
        if vae is not None and key.startswith(VAE_PREFIX):
            plan.entries[key] = Entry(key, (vae_source(vae, key, info.shape),), block, layer, info.shape)
            continue
        sources = [weights_of(first, key, ema)]
        if places and info.dtype in FLOAT_DTYPES and 0 not in info.shape:
            here = [weights_of(file, other, ema) for file in rest if (other := answer(file, key))]
            missing += len(here) < len(rest)
            if len(here) == len(rest):
                sources += here
                check_shapes(key, sources, plan)
        plan.entries[key] = Entry(key, tuple(sources), block, layer, info.shape)
    if missing:
        plan.notes.append(
            f"{counted(missing, 'tensor', 'are')} not in every model; those of the first are taken as they are"
        )
    if dropped:
        plan.notes.append(f"{counted(dropped, 'tensor', 'are')} left out (averages, or read by no program)")
    extra = sum(1 for file in rest for key in file.tensors if is_wanted(key) and answer(first, key) is None)
    if extra:
        plan.notes.append(
            f"not in the first model, and so not in the result: {counted(extra, 'tensor')} of the others"
        )
    return plan


def is_wanted(key: str) -> bool:
    """Whether a program that draws pictures reads the tensor."""
    return key.startswith(_MODEL) or key in _MARKS


def answer(file: WeightFile, key: str) -> str | None:
    """The key under which a file has a tensor: old files lack ``text_model.``"""
    if key in file.tensors:
        return key
    if key.startswith(_TEXT):
        rest = key.removeprefix(_TEXT)
        other = _TEXT + (
            rest.removeprefix("text_model.") if rest.startswith("text_model.") else f"text_model.{rest}"
        )
        return other if other in file.tensors else None
    return None


def weights_of(file: WeightFile, key: str, ema: str) -> Source:
    """The tensor, or its running average where that is wanted and there."""
    average = EMA + key.removeprefix("model.").replace(".", "")
    if ema == "use" and key.startswith("model.") and average in file.tensors:
        return Source(file, average)
    return Source(file, key)


def average_notes(files: Sequence[WeightFile]) -> list[str]:
    """A note on each file in which only some weights have an average, so that the two mix.

    Raises InputError where no file has any.
    """
    counts = {}
    for file in files:
        keys = [key for key in file.tensors if key.startswith(UNET_PREFIX)]
        counts[file.path] = len(keys), sum(weights_of(file, key, "use").key != key for key in keys)
    if not any(there for _, there in counts.values()):
        raise InputError(f"{', '.join(map(str, counts))}: --ema use: there are no averages (EMA)")
    return [
        f"{path}: {there} of {all_keys} weights of the UNet have an average, which is used; the others stay as they are"
        for path, (all_keys, there) in counts.items()
        if there < all_keys
    ]


def check_shapes(key: str, sources: Sequence[Source], plan: Plan) -> None:
    """Raise InputError where shapes differ otherwise than an inpainting model's first layer does."""
    shapes = [source.file.tensors[source.key].shape for source in sources]
    if len(set(shapes)) == 1:
        return
    if is_first_layer(key) and len({(s[0], *s[2:]) for s in shapes}) == 1:
        told = ", ".join(
            f"{source.file.path} has {shape[1]}" for source, shape in zip(sources, shapes, strict=True)
        )
        plan.notes.append(f"{key} has different numbers of inputs: {told}; the first four are merged")
        return
    told = ", ".join(
        f"{source.file.path} has {'x'.join(map(str, shape))}"
        for source, shape in zip(sources, shapes, strict=True)
    )
    raise InputError(f"the models differ in {quote(key)[1:-1]}: {told}")


def is_first_layer(key: str) -> bool:
    """The convolution that takes the latents (4 channels), and in inpainting models mask and picture too (9)."""
    return key == f"{UNET_PREFIX}input_blocks.0.0.weight"


# -------------------------------------------------------------------------------- VAE


def vae_table(file: WeightFile) -> dict[str, Source]:
    """A VAE file's tensors by their name in a checkpoint; bare, prefixed and diffusers' names are known.

    Raises InputError for a file that is no VAE.
    """
    bare = {key.removeprefix(VAE_PREFIX): key for key in file.tensors}
    levels = {int(key.split(".")[2]) for key in bare if key.startswith("encoder.down_blocks.")}
    count = max(levels) + 1 if levels else 4
    table = {}
    for name, key in bare.items():
        ldm = name if not levels else vae_to_ldm(name, count)
        if ldm and name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")):
            table[VAE_PREFIX + ldm] = Source(file, key)
    if not any(key.startswith(f"{VAE_PREFIX}decoder.") for key in table):
        raise InputError(f"{file.path}: this is not a VAE")
    return table


def vae_source(table: Mapping[str, Source], key: str, shape: tuple[int, ...]) -> Source:
    """The VAE's tensor for a key of the checkpoint."""
    source = table.get(key)
    if source is None:
        path = next(iter(table.values())).file.path
        raise InputError(
            f"--vae {path}: has no {key.removeprefix(VAE_PREFIX)}; it is of another architecture"
        )
    own = source.file.tensors[source.key].shape
    if own != shape and (math.prod(own) != math.prod(shape) or {*own, 1} != {*shape, 1}):
        raise InputError(f"--vae {source.file.path}: {source.key} has shape {own}, the checkpoint's {shape}")
    return source


def check_method(method: str, least: int, most: int | None, count: int) -> None:
    """Raise ConfigError where a method does not take that many models."""
    if count < least or (most is not None and count > most):
        wanted = f"{least}" if most == least else f"{least} or more" if most is None else f"{least} to {most}"
        raise ConfigError(f"--method {method} takes {wanted} models, here are {count}")
