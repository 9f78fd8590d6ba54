"""A base model in memory, before it is put on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lorapipe_engine.files.hashcache import known_sha256
from lorapipe_engine.files.hashes import legacy_hash
from lorapipe_engine.train.base.tokenizers import Tokenizer


@dataclass(frozen=True)
class BaseModel:
    """A base model in memory, on the CPU, frozen.

    ``family``: a name of the table of families. ``text_encoders`` and ``tokenizers``: as many as the family has.
    ``prediction_type``: "epsilon", "v_prediction", another name of
    :mod:`lorapipe_engine.models.predictions`, or None where the files do not tell (SD 2.x).
    ``zero_terminal_snr``: the files say that it was trained so. ``encoder_layer``: the clip skip that the
    file's metadata asks for, if any. ``source``: what the user gave; ``path``: the file or folder that it
    stands for; ``vae_path``: that of a replaced VAE. ``metadata``: of a safetensors file.
    """

    family: str
    denoiser: Any
    vae: Any
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Tokenizer, ...]
    prediction_type: str | None
    source: str
    path: Path
    vae_path: Path | None = None
    zero_terminal_snr: bool = False
    encoder_layer: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def hashes(self) -> tuple[str, str] | None:
        """A1111's old short hash and the sha256 of a single file, read when asked for; None for a folder."""
        return _hashes(self.path)

    @cached_property
    def vae_hashes(self) -> tuple[str, str] | None:
        """The same for the file of a replaced VAE."""
        return _hashes(self.vae_path) if self.vae_path else None


def _hashes(path: Path) -> tuple[str, str] | None:
    return (legacy_hash(path), known_sha256(path)) if path.is_file() else None
