"""Captions encoded once: what the text encoders say of them is kept in memory, and on disk if asked for.

An entry on disk is found by what it was made of (tokens, their weights, and what the encoder's ``cache_key`` names), so
a stale one is never met and two runs may share the folder.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch

from lorapipe_engine.command.progress import progress
from lorapipe_engine.errors import LoraError
from lorapipe_engine.files.tensorfile import write_tensors
from lorapipe_engine.train.base.shelf import Shelf
from lorapipe_engine.train.base.torchfile import decoded, encoded
from lorapipe_engine.train.data.latents import open_entry
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.families.text import Conditioning, Tokens
from lorapipe_engine.train.processes import ALONE, Processes

CACHE_VERSION = "text-2"
TOGETHER = 16  # captions encoded at once


class TextCache:
    """What the text encoders of a family say of captions. ``folder`` None keeps nothing on disk; ``weighted``: captions
    hold weights. The network must not change the encoders. ``inside`` and ``damaged`` as of the cache of latents.

    ``shelf``: where states of an earlier run of the same process may be, of ``made_with``, all that decides them
    besides the base and the captions.
    """

    def __init__(
        self,
        family: Family,
        *,
        weighted: bool,
        folder: Path | None = None,
        inside: Path | None = None,
        processes: Processes = ALONE,
        shelf: Shelf | None = None,
        made_with: Hashable = None,
    ) -> None:
        self._shelf = shelf or Shelf()
        self._made_with = made_with
        self.inside = folder if inside is None else inside
        self.damaged: list[Path] = []
        self.family = family
        self.weighted = weighted
        self.folder = folder
        self._processes = processes
        self._form: tuple[object, ...] | None = None
        self._known: dict[str, Conditioning] = {}
        self._key = family.text.cache_key if folder is not None else ""

    def __len__(self) -> int:
        return len(self._known)

    def prepare(self, captions: Iterable[str]) -> None:
        """Encode captions, or read them from the disk, so that :meth:`take` finds them."""
        wanted = sorted(set(captions) - self._known.keys())
        own = [wanted[number] for number in self._processes.own(len(wanted))]

        def encode() -> list[Conditioning]:
            with progress(total=len(own), label="text", unit="caption") as bar:
                for start in range(0, len(own), TOGETHER):
                    group = own[start : start + TOGETHER]
                    self._prepare(group)
                    bar.update(len(group))
            return [self._known[caption] for caption in own]

        # All or nothing: what is encoded together is part of what comes out, to the last bit. Those on disk stay there.
        key = (tuple(own), self.weighted, self._made_with)
        made = self._shelf.texts(key, encode) if self.folder is None else encode()
        self._known |= zip(wanted, self._processes.exchange(made, len(wanted)), strict=True)

    def take(self, captions: Sequence[str]) -> Conditioning:
        """The states of captions that were prepared, on the device."""
        return Conditioning.stacked([self._known[caption] for caption in captions], self.family.device)

    def _prepare(self, captions: Sequence[str]) -> None:
        text = self.family.text
        tokens = text.tokenize(captions, weighted=self.weighted)
        paths = [self._path(tokens, row) for row in range(len(captions))]
        missing = []
        for row, caption in enumerate(captions):
            known = self._read(paths[row])
            if known is None:
                missing.append(row)
            else:
                self._known[caption] = known
        if not missing:
            return
        states = self._encode(tokens.rows(missing))
        for place, row in enumerate(missing):
            self._known[captions[row]] = states.row(place)
            self._write(paths[row], self._known[captions[row]])

    def _encode(self, tokens: Tokens) -> Conditioning:
        self.family.text.move_to_device()  # not before: where all is known they need not come
        with torch.no_grad():
            return self.family.text.encode(tokens)

    # ------------------------------------------------------------------------------------------- on disk

    def _path(self, tokens: Tokens, row: int) -> Path | None:
        if self.folder is None:
            return None
        digest = hashlib.sha256(f"{CACHE_VERSION}|{self.family.name}|{self._key}".encode())
        for tensor in (*tokens.ids, *(tokens.weights or ())):
            digest.update(f"|{tuple(tensor.shape[1:])}|".encode())
            digest.update(tensor[row].cpu().numpy().tobytes())
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def _write(self, path: Path | None, states: Conditioning) -> None:
        """Keep an entry; a cache that cannot be written is no reason to stop."""
        if path is None or self.folder is None or self.inside is None:
            return
        tensors = {name: encoded(tensor) for name, tensor in states.named().items()}
        try:
            self.inside.mkdir(parents=True, exist_ok=True)
            write_tensors(path, tensors, force=True, inside=self.inside)
        except (LoraError, OSError):
            self.folder = None

    def _read(self, path: Path | None) -> Conditioning | None:
        """An entry, or None where it must be made (a broken one too)."""
        if path is None or self.inside is None or not os.path.lexists(path):
            return None
        with suppress(LoraError, TypeError, OSError), open_entry(path, self.inside) as file:
            states = Conditioning(**{name: decoded(file, name).clone() for name in file.tensors})
            if self._is_usable(states):
                return states
        self.damaged.append(path)
        return None

    def _is_usable(self, states: Conditioning) -> bool:
        """Whether they have the form and type of what the encoders give, of finite numbers."""
        if self._form is None:
            text = self.family.text
            self._form = _form_of(self._encode(text.tokenize([""], weighted=self.weighted)).row(0))
        tensors = states.named().values()
        return _form_of(states) == self._form and all(bool(tensor.isfinite().all()) for tensor in tensors)


def _form_of(states: Conditioning) -> tuple[object, ...]:
    return tuple((name, tensor.shape, tensor.dtype) for name, tensor in states.named().items())
