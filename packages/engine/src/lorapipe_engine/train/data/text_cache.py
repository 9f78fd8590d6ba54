"""Captions encoded once: what the text encoders say of them is kept in memory, and on disk if asked for.

An entry on disk is found by what it was made of (token ids and their weights, the encoders' bytes, layer and
precision), so a stale one is never met and two runs may share the folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from lorapipe_engine.command.progress import progress
from lorapipe_engine.errors import LoraError
from lorapipe_engine.files.tensorfile import write_tensors
from lorapipe_engine.train.base.torchfile import decoded, encoded
from lorapipe_engine.train.data.latents import open_entry, weights_key
from lorapipe_engine.train.families.base import Conditioning, Family
from lorapipe_engine.train.processes import ALONE, Processes

CACHE_VERSION = "text-1"
TOGETHER = 16  # captions encoded at once


class TextCache:
    """What the encoders of a family say of captions. ``folder`` None keeps nothing on disk; ``weighted``: captions hold
    weights. The network must not change the encoders. ``inside`` and ``damaged`` as of the cache of latents."""

    def __init__(
        self,
        family: Family,
        *,
        clip_skip: int | None,
        weighted: bool,
        folder: Path | None = None,
        inside: Path | None = None,
        processes: Processes = ALONE,
    ) -> None:
        self.inside = folder if inside is None else inside
        self.damaged: list[Path] = []
        self.family = family
        self.clip_skip = clip_skip
        self.weighted = weighted
        self.folder = folder
        self._processes = processes
        self._form: tuple[object, ...] | None = None
        self._known: dict[str, Conditioning] = {}
        self._key = weights_key(family.text_encoders, family.dtype) if folder is not None else ""

    def __len__(self) -> int:
        return len(self._known)

    def prepare(self, captions: Iterable[str]) -> None:
        """Encode captions, or read them from the disk, so that :meth:`take` finds them."""
        wanted = sorted(set(captions) - self._known.keys())
        own = [wanted[number] for number in self._processes.own(len(wanted))]
        with progress(total=len(own), label="text", unit="caption") as bar:
            for start in range(0, len(own), TOGETHER):
                group = own[start : start + TOGETHER]
                self._prepare(group)
                bar.update(len(group))
        made = [self._known[caption] for caption in own]
        self._known |= zip(wanted, self._processes.exchange(made, len(wanted)), strict=True)

    def take(self, captions: Sequence[str]) -> Conditioning:
        """The states of captions that were prepared, on the device."""
        rows = [self._known[caption] for caption in captions]
        device = self.family.device
        pooled = [row.pooled for row in rows if row.pooled is not None]
        return Conditioning(
            torch.stack([row.hidden for row in rows]).to(device, non_blocking=True),
            torch.stack(pooled).to(device, non_blocking=True) if pooled else None,
        )

    def _prepare(self, captions: Sequence[str]) -> None:
        ids, weights = self.tokens(captions)
        paths = [self._path(ids, weights, row) for row in range(len(captions))]
        missing = []
        for row, caption in enumerate(captions):
            found = self._read(paths[row])
            if found is None:
                missing.append(row)
            else:
                self._known[caption] = found
        if not missing:
            return
        with torch.no_grad():
            states = self.family.encode_text(
                [tensor[missing] for tensor in ids],
                clip_skip=self.clip_skip,
                weights=weights and [tensor[missing] for tensor in weights],
            )
        for place, row in enumerate(missing):
            pooled = None if states.pooled is None else states.pooled[place].cpu().clone()
            self._known[captions[row]] = Conditioning(states.hidden[place].cpu().clone(), pooled)
            self._write(paths[row], self._known[captions[row]])

    def tokens(self, captions: Sequence[str]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]:
        """Token ids of captions, and the weights of the tokens where captions hold some."""
        if self.weighted:
            return self.family.tokenize_weighted(captions)
        return self.family.tokenize(captions), None

    # ------------------------------------------------------------------------------------------- on disk

    def _path(self, ids: Sequence[Tensor], weights: Sequence[Tensor] | None, row: int) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.sha256(f"{CACHE_VERSION}|{self._key}|{self.family.name}|{self.clip_skip}".encode())
        for tensor in (*ids, *(weights or ())):
            digest.update(f"|{tuple(tensor.shape[1:])}|".encode())
            digest.update(tensor[row].cpu().numpy().tobytes())
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def _write(self, path: Path | None, states: Conditioning) -> None:
        """Keep an entry; a cache that cannot be written is no reason to stop."""
        if path is None or self.folder is None or self.inside is None:
            return
        tensors = {"hidden": encoded(states.hidden)}
        if states.pooled is not None:
            tensors["pooled"] = encoded(states.pooled)
        try:
            self.inside.mkdir(parents=True, exist_ok=True)
            write_tensors(path, tensors, force=True, inside=self.inside)
        except (LoraError, OSError):
            self.folder = None

    def _read(self, path: Path | None) -> Conditioning | None:
        """An entry, or None where it must be made (a broken one too)."""
        if path is None or self.inside is None or not os.path.lexists(path):
            return None
        with suppress(LoraError, KeyError, OSError), open_entry(path, self.inside) as file:
            pooled = decoded(file, "pooled").clone() if "pooled" in file.tensors else None
            states = Conditioning(decoded(file, "hidden").clone(), pooled)
            if self._is_usable(states):
                return states
        self.damaged.append(path)
        return None

    def _is_usable(self, states: Conditioning) -> bool:
        """Whether they have the form and type of what the encoders give, of finite numbers."""
        if self._form is None:
            ids, weights = self.tokens([""])
            with torch.no_grad():
                made = self.family.encode_text(ids, clip_skip=self.clip_skip, weights=weights)
            self._form = _form_of(
                Conditioning(made.hidden[0], None if made.pooled is None else made.pooled[0])
            )
        tensors = [states.hidden, *([] if states.pooled is None else [states.pooled])]
        return _form_of(states) == self._form and all(bool(tensor.isfinite().all()) for tensor in tensors)


def _form_of(states: Conditioning) -> tuple[object, ...]:
    pooled = states.pooled
    return states.hidden.shape, states.hidden.dtype, *(() if pooled is None else (pooled.shape, pooled.dtype))
