"""Load a base model: a file, a diffusers folder or a hub id -> UNet, VAE, text encoders and tokenizers.

The architecture is read from the tensors; nothing is downloaded for a local model (save CLIP's vocabulary
where it is neither beside the model nor in the hub's cache).

What the UNet predicts is known where a file says so: a ``v_pred`` mark, ``modelspec.prediction_type`` or
``modelspec.architecture`` in its metadata, the scheduler's configuration in a diffusers folder. SD 1.x and
SDXL without a word predict noise. SD 2.x tells nothing: its 512 models predict noise, its 768 models v, with
the same tensors. diffusers takes noise where a .ckpt's ``global_step`` is 875000 (2.0's own 512 model), as is
done here, and guesses v for all others; here ``prediction_type`` is None then, and the caller decides
(sd-scripts' ``--v_parameterization``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.hashcache import known_sha256
from lorapipe_engine.files.hashes import legacy_hash
from lorapipe_engine.models.families import get_family
from lorapipe_engine.train.base import architecture
from lorapipe_engine.train.base.modules import Piece, build_text_encoder, build_unet, build_vae
from lorapipe_engine.train.base.sources import Draft, read_base, read_vae, resolve
from lorapipe_engine.train.base.tokenizers import Tokenizer, find_tokenizer

_HEADS = {"sd1": architecture.eight_heads, "sd2": architecture.wide_heads, "sdxl": architecture.wide_heads}
_ACTIVATIONS = {"sd1": ("quick_gelu",), "sd2": ("gelu",), "sdxl": ("quick_gelu", "gelu")}


@dataclass(frozen=True)
class BaseModel:
    """A base model in memory, on the CPU, frozen.

    ``family``: "sd1", "sd2" or "sdxl". ``text_encoders`` and ``tokenizers``: one, for SDXL two.
    ``prediction_type``: "epsilon", "v_prediction", or None where the files do not tell (SD 2.x).
    ``zero_terminal_snr``: the files say that it was trained so. ``encoder_layer``: the clip skip that the
    file's metadata asks for, if any. ``source``: what the user gave; ``path``: the file or folder that it
    stands for; ``vae_path``: that of a replaced VAE. ``metadata``: of a safetensors file.
    """

    family: str
    unet: Any
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


def load_base(
    source: str | Path,
    *,
    vae: str | Path | None = None,
    v2: bool | None = None,
    dtype: torch.dtype = torch.float32,
    tokenizer_dir: Path | None = None,
) -> BaseModel:
    """Load a base model from a .safetensors or .ckpt file, a diffusers folder or a hub id, in ``dtype``.

    ``vae`` replaces the VAE (a file, a folder or a hub id); ``v2`` True insists on SD 2.x; ``tokenizer_dir``
    holds the tokenizer. Raises InputError with one line for anything that is no base model.
    """
    vae_path = resolve(vae, dtype) if vae is not None else None
    with ExitStack() as stack:
        draft = read_base(resolve(source, dtype), stack)
        if v2 and draft.family != "sd2":
            raise InputError(f"{source}: this is {get_family(draft.family).title}, not 2.x; leave out --v2")
        # Cheap and easily missing, so before gigabytes are read.
        tokenizers = _tokenizers(draft, tokenizer_dir)
        model = BaseModel(
            family=draft.family,
            unet=_unet(draft, dtype),
            vae=_vae(draft, vae_path, dtype, stack),
            text_encoders=tuple(_text_encoders(draft, dtype)),
            tokenizers=tokenizers,
            prediction_type=draft.prediction_type,
            source=str(source),
            path=draft.path,
            vae_path=vae_path,
            zero_terminal_snr=draft.zero_terminal_snr,
            encoder_layer=draft.encoder_layer,
            metadata=draft.metadata,
        )
    _check_fit(model)
    return model


def _unet(draft: Draft, dtype: torch.dtype) -> Any:
    pieces = draft.parts["unet"]
    projection = draft.parts.get("te2", {}).get("text_projection.weight")
    pooled = _rows(projection) if projection else None
    with _naming(draft.path):
        config = architecture.unet_config(_shapes(pieces), _HEADS[draft.family], pooled)
    return build_unet({**config, **draft.hints.get("unet", {})}, pieces, dtype, str(draft.path))


def _vae(draft: Draft, other: Path | None, dtype: torch.dtype, stack: ExitStack) -> Any:
    """The base's own VAE or the one at ``other``, which takes over the base's latent scale."""
    said = draft.hints.get("vae", {})
    scale = said.get("scaling_factor", get_family(draft.family).latent_scale)
    pieces, path = draft.parts.get("vae", {}), draft.path
    if other is not None:
        path = other
        pieces, said = read_vae(other, stack)
    if not pieces:
        raise InputError(f"{path}: no VAE in it; pass one with --vae")
    with _naming(path):
        config = architecture.vae_config(_shapes(pieces))
    return build_vae({**config, **said, "scaling_factor": scale}, pieces, dtype, str(path))


def _text_encoders(draft: Draft, dtype: torch.dtype) -> Iterator[Any]:
    for part, activation in zip(get_family(draft.family).text_parts, _ACTIVATIONS[draft.family], strict=True):
        pieces = draft.parts[part]
        with _naming(draft.path):
            config = architecture.clip_config(_shapes(pieces), activation)
        yield build_text_encoder({**config, **draft.hints.get(part, {})}, pieces, dtype, str(draft.path))


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before an error that is only about its tensors."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _tokenizers(draft: Draft, given: Path | None) -> tuple[Tokenizer, ...]:
    found: list[Tokenizer] = []
    for part, beside in zip(get_family(draft.family).text_parts, draft.tokenizers, strict=True):
        embedding = draft.parts.get(part, {}).get("text_model.embeddings.token_embedding.weight")
        if embedding is None:
            raise InputError(f"{draft.path}: no text encoder {part} in it; give the whole checkpoint")
        with _naming(draft.path):
            found.append(find_tokenizer(given, beside, _rows(embedding)))
    return tuple(found)


def _check_fit(model: BaseModel) -> None:
    """UNet, VAE and text encoders have to speak the same widths. Raises InputError if they do not."""
    width = sum(int(encoder.config.hidden_size) for encoder in model.text_encoders)
    wanted = int(model.unet.config.cross_attention_dim)
    if width != wanted:
        raise InputError(f"{model.path}: the text states are {width} wide, but the UNet reads {wanted}")
    channels = int(model.vae.config.latent_channels)
    if channels != int(model.unet.config.in_channels):
        where = model.vae_path or model.path
        raise InputError(
            f"{where}: the VAE makes {channels} channels, the UNet reads {model.unet.config.in_channels}"
        )


def _rows(piece: Piece) -> int:
    return piece.shape[0] if piece.shape else 0


def _shapes(pieces: Mapping[str, Piece]) -> dict[str, tuple[int, ...]]:
    return {name: piece.shape for name, piece in pieces.items()}


def _hashes(path: Path) -> tuple[str, str] | None:
    return (legacy_hash(path), known_sha256(path)) if path.is_file() else None
