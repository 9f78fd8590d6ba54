"""Load Stable Diffusion 1.x, 2.x and XL: a file, a diffusers folder or a hub's copy -> UNet, VAE, text encoders and
tokenizers.

The architecture is read from the tensors.

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
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorapipe_engine.errors import InputError
from lorapipe_engine.models import architecture
from lorapipe_engine.models.families import get_family
from lorapipe_engine.train.base.model import BaseModel
from lorapipe_engine.train.base.modules import (
    Piece,
    build_text_encoder,
    build_unet,
    build_vae,
    outline_text_encoder,
    outline_unet,
)
from lorapipe_engine.train.base.sources import Draft, read_base, read_vae
from lorapipe_engine.train.base.tokenizers import Tokenizer, find_tokenizer
from lorapipe_engine.train.base.weights import Weights

CHANNELS = 4  # of the latents of all Stable Diffusion


def load(
    source: str | Path,
    path: Path,
    weights: Weights | None,
    *,
    vae_path: Path | None,
    v2: bool | None,
    dtype: torch.dtype,
    tokenizer_dir: Path | None,
) -> BaseModel:
    """Load what is at ``path``; ``weights``: it is open already, where it is a file. See
    :func:`lorapipe_engine.train.base.load.load_base`."""
    with ExitStack() as stack:
        draft = read_base(path, stack, weights)
        if v2 and draft.family != "sd2":
            raise InputError(f"{source}: this is {get_family(draft.family).title}, not 2.x; leave out --v2")
        # Cheap and easily missing, so before gigabytes are read.
        tokenizers = _tokenizers(draft, tokenizer_dir)
        model = BaseModel(
            family=draft.family,
            denoiser=_unet(draft, dtype),
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


def outline(draft: Draft) -> BaseModel:
    """UNet and text encoders of a draft as modules on the meta device, which have shapes and no values; without VAE and
    tokenizers. Raises InputError."""
    texts = tuple(outline_text_encoder(config, draft.parts[part]) for part, config in _text_configs(draft))
    where = str(draft.path)
    unet = outline_unet(_unet_config(draft), where)
    return BaseModel(draft.family, unet, nn.Identity(), texts, (), draft.prediction_type, where, draft.path)


def _unet(draft: Draft, dtype: torch.dtype) -> Any:
    return build_unet(_unet_config(draft), draft.parts["unet"], dtype, str(draft.path))


def _unet_config(draft: Draft) -> dict[str, Any]:
    projection = draft.parts.get("te2", {}).get("text_projection.weight")
    pooled = _rows(projection) if projection else None
    with _naming(draft.path):
        config = architecture.unet_config(_shapes(draft.parts["unet"]), heads_of(draft.family), pooled)
    return {**config, **draft.hints.get("unet", {})}


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


def heads_of(family: str) -> architecture.Heads:
    """How many heads of attention a family's UNet has at a width."""
    heads = get_family(family).heads
    return architecture.wide_heads if heads is None else partial(architecture.fixed_heads, heads)


def _text_encoders(draft: Draft, dtype: torch.dtype) -> Iterator[Any]:
    for part, config in _text_configs(draft):
        yield build_text_encoder(config, draft.parts[part], dtype, str(draft.path))


def _text_configs(draft: Draft) -> Iterator[tuple[str, dict[str, Any]]]:
    facts = get_family(draft.family)
    for part, activation in zip(facts.text_parts, facts.activations, strict=True):
        with _naming(draft.path):
            config = architecture.clip_config(_shapes(draft.parts.get(part, {})), activation)
        yield part, {**config, **draft.hints.get(part, {})}


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name before an error that is only about its tensors."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _tokenizers(draft: Draft, given: Path | None) -> tuple[Tokenizer, ...]:
    tokenizers: list[Tokenizer] = []
    for part, beside in zip(get_family(draft.family).text_parts, draft.tokenizers, strict=True):
        embedding = draft.parts.get(part, {}).get("text_model.embeddings.token_embedding.weight")
        if embedding is None:
            raise InputError(f"{draft.path}: no text encoder {part} in it; give the whole checkpoint")
        with _naming(draft.path):
            tokenizers.append(find_tokenizer(given, beside, _rows(embedding)))
    return tuple(tokenizers)


def _check_fit(model: BaseModel) -> None:
    """UNet, VAE and text encoders have to speak the same widths. Raises InputError if they do not."""
    width = sum(int(encoder.config.hidden_size) for encoder in model.text_encoders)
    wanted = int(model.denoiser.config.cross_attention_dim)
    if width != wanted:
        raise InputError(f"{model.path}: the text states are {width} wide, but the UNet reads {wanted}")
    channels, read = int(model.vae.config.latent_channels), int(model.denoiser.config.in_channels)
    where = model.vae_path or model.path
    if channels == read != CHANNELS:
        raise InputError(
            f"{where}: its latents have {channels} channels, and only those of {CHANNELS} can be trained or drawn"
        )
    if channels != read:
        mend = f"; give a VAE of {CHANNELS} with --vae" if read == CHANNELS else ""
        raise InputError(f"{where}: the VAE makes {channels} channels, the UNet reads {read}{mend}")


def _rows(piece: Piece) -> int:
    return piece.shape[0] if piece.shape else 0


def _shapes(pieces: Mapping[str, Piece]) -> dict[str, tuple[int, ...]]:
    return {name: piece.shape for name, piece in pieces.items()}
