"""``--vram``: the plain options that make a run fit a card, found by the memory model, the cheapest first."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.models.bases import resolve_base
from lorapipe_engine.settings import TrainSettings
from lorapipe_engine.train.data.examples import scan
from lorapipe_engine.train.memory.fit import changes, load_of, outline_of, shapes_of, uncounted
from lorapipe_engine.train.memory.model import GIB, predict
from lorapipe_engine.train.network.arguments import read_network_args
from lorapipe_engine.train.plan import DTYPES, choose_device, choose_precision

KEPT = 0.8  # GiB of a card that the screen and the driver have
SPARE = 0.95  # share of the rest that is planned for: the memory model is right to 5 %, and memory is not one piece


def fit_to_card(parts: Sequence[Any], origin: Mapping[str, str]) -> tuple[list[Any], dict[str, str], str]:
    """The options with what ``vram`` asks for, where each came from, and a line for the user.

    Options that the user gave stay. Raises ConfigError where the run cannot fit, and what :func:`.scan` and
    :func:`.outline_of` raise.
    """
    model, data, network, optimizer, loss, run = parts
    settings = TrainSettings(model=model, data=data, network=network, optimizer=optimizer, loss=loss, run=run)
    card, room, dtype = card_of(settings)
    given = {name for name, source in origin.items() if source != "default"}
    chosen, needed = find_options(settings, dtype, room, given)
    words = ", ".join(f"{name} {_shown(value)}" for name, value in chosen.items())
    line = f"{card}: {words or 'as it is'}; about {needed:.1f} GiB of {room:.1f}"
    where = {**origin, **dict.fromkeys(chosen, f"from vram = {model.vram}")}
    return [_with(part, chosen) for part in parts], where, line


def card_of(settings: TrainSettings) -> tuple[str, float, torch.dtype]:
    """The card in words, GiB that a run can have of it, and the type of the frozen weights there."""
    device = choose_device(settings.model.device)
    has_card = device.type == "cuda"
    # What is planned on another machine is planned for a card that has bf16.
    precision = settings.model.mixed_precision or (choose_precision(None, device) if has_card else "bf16")
    if settings.model.vram != "auto":
        size = float(settings.model.vram or 0)
        return f"a card of {size:g} GiB", size - KEPT, DTYPES[precision]
    if not has_card:
        raise ConfigError(
            f"vram: auto needs a CUDA card, and the run is on {device}; name a size, as in --vram 8"
        )
    return "this card", torch.cuda.mem_get_info(device)[0] / GIB, DTYPES[precision]


def find_options(
    settings: TrainSettings, dtype: torch.dtype, room: float, given: Collection[str]
) -> tuple[dict[str, Any], float]:
    """Options that make the run fit into ``room`` GiB, and the GiB that it takes then. Raises ConfigError."""
    dataset = scan(settings.data, settings.run.seed)
    source = resolve_base(settings.model.pretrained_model_name_or_path or "")
    if (other := uncounted(source, dtype)) is not None:
        raise ConfigError(
            f"vram: the memory of {other} is not known; leave it out and choose the options by hand"
        )
    family = outline_of(source, dtype)
    unet, shapes = shapes_of(family)
    load = load_of(settings, read_network_args(settings.network), dataset, family)
    needed = predict(unet, shapes, load).gib
    chosen: dict[str, Any] = {}
    fixed = {*given} if find_spec("bitsandbytes") else {*given, "optimizer_type"}
    for way in changes(settings, load, fixed):
        if needed <= room * SPARE:
            break
        chosen |= way.options
        needed = predict(unet, shapes, way.load).gib
    if needed > room * SPARE:
        tried = f" even with {', '.join(chosen)}" if chosen else ""
        hint = (
            ""
            if find_spec("bitsandbytes")
            else " (pip install bitsandbytes brings AdamW8bit, which takes less)"
        )
        raise ConfigError(
            f"vram: this run needs about {needed:.1f} GiB{tried}, and {room * SPARE:.1f} GiB can be planned with; take "
            f"a smaller resolution or rank, or leave out what is given by hand{hint}"
        )
    return chosen, needed


def _with(part: Any, chosen: Mapping[str, Any]) -> Any:
    own = {field.name for field in dataclasses.fields(part)}
    return dataclasses.replace(part, **{name: value for name, value in chosen.items() if name in own})


def _shown(value: Any) -> str:
    return "on" if value is True else str(value)
