"""Bases, latents and text states that the next run of a queue uses again, without reading or encoding them anew.

A run changes the modules that it trains on: they are moved, given adapters and fused forwards, quantized, other
networks are merged into them. So no run gets what is kept: each gets modules of its own, copied from it, which are what
a fresh load gives whatever the run before did.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lorapipe_engine.settings import ModelSettings
from lorapipe_engine.train.base.model import BaseModel

Stamp = tuple[Hashable, ...]
States = TypeVar("States")
Thing = TypeVar("Thing")


def stamp(path: Path | str | None) -> Stamp:
    """What tells whether the files of a path are those of before: names, sizes and times of change."""
    if path is None:
        return ()
    place = Path(path)
    files = sorted(place.rglob("*")) if place.is_dir() else [place] if place.exists() else []
    rows = [(str(file), facts.st_size, facts.st_mtime_ns) for file in files for facts in (file.stat(),)]
    return (str(path), *rows)


def base_key(model: ModelSettings, source: Path | str, dtype: torch.dtype) -> Stamp:
    """What decides the modules that are loaded."""
    form = model.vae_custom_scale, model.vae_custom_shift, model.vae_reflection_padding
    return stamp(source), stamp(model.vae), form, model.v2, dtype, stamp(model.tokenizer_dir)


@dataclass
class Shelf:
    """What is kept from one run to the next: nothing, unless ``wanted``, the key (:func:`base_key`) of the base that
    the next run asks for, is that of this one. ``reused`` counts the loads that were spared.
    """

    wanted: Stamp | None = None
    reused: int = 0
    _key: Stamp | None = None
    _base: BaseModel | None = None
    _latents: dict[Hashable, list[Tensor]] = field(default_factory=dict)
    _texts: dict[Hashable, list[Any]] = field(default_factory=dict)

    def base(self, key: Stamp, load: Callable[[], BaseModel], *, copies_weights: bool) -> BaseModel:
        """The base of ``key``, as ``load`` gives it, for one run to change. ``copies_weights``: the run works on the
        memory that it gets; else it has moved the weights to a device before it changes them.
        """
        if self._key != key:
            self.clear()
        base, self._key = self._base, key
        if base is None:
            base = load()
        else:
            self.reused += 1
        self._base = base if key == self.wanted else None
        return base if self._base is None else _own(base, copies_weights)

    def latents(self, key: Hashable, encode: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Latents of ``key``, made with the base that was asked for last, as ``encode`` makes them."""
        return self._kept(self._latents, key, encode)

    def texts(self, key: Hashable, encode: Callable[[], list[States]]) -> list[States]:
        """Text states of ``key``, made with the base that was asked for last, as ``encode`` makes them."""
        return self._kept(self._texts, key, encode)

    def _kept(
        self, kept: dict[Hashable, list[Thing]], key: Hashable, make: Callable[[], list[Thing]]
    ) -> list[Thing]:
        things = kept.get(key)
        if things is None:
            things = make()
        if self._key == self.wanted:
            kept[key] = things
        return things

    def clear(self) -> None:
        """Keep nothing."""
        self._key = self._base = None
        self._latents.clear()
        self._texts.clear()


def _own(base: BaseModel, copies_weights: bool) -> BaseModel:
    return replace(
        base,
        denoiser=_copied(base.denoiser, copies_weights),
        vae=_copied(base.vae, copies_weights),
        text_encoders=tuple(_copied(encoder, copies_weights) for encoder in base.text_encoders),
    )


def _copied(module: Any, copies_weights: bool) -> Any:
    """A module of its own, with weights of its own or with the memory of the other's."""
    known: dict[int, Any] = {}
    if not copies_weights:
        for parameter in module.parameters():
            known[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    return copy.deepcopy(module, known)
