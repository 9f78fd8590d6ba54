"""Single-file checkpoints (LDM and SGM names): which tensor goes where in the modules."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from lorapipe_engine.errors import InputError
from lorapipe_engine.models import keys
from lorapipe_engine.models.families import VAE_PREFIX, get_family
from lorapipe_engine.train.base.modules import HARMLESS, Piece
from lorapipe_engine.train.base.weights import Weights

Parts = dict[str, dict[str, Piece]]

OPENCLIP_H_LAYERS = 23  # of 24, that SD 2.x runs; files converted from diffusers hold only these
# Losses of the VAE's training, and what OpenCLIP and other programs leave beside the encoders.
_LEFTOVER = re.compile(
    r"first_stage_model\.(loss|model_ema)\.|.*\.(attn_mask|logit_scale|position_ids)$|.*\.visual\."
)


def split_checkpoint(weights: Weights, family: str) -> Parts:
    """The tensors of a checkpoint by part ("unet", "vae", "te1", "te2") and name in its module.

    Fused q, k and v are taken apart and 1x1 convolutions of the VAE's attention become linear layers. SD 2.x
    loses its last text layer, which it never runs. Raises InputError for tensors that have no place.
    """
    layout = keys.find_layout(weights.shapes)
    parts: Parts = {}
    unknown = []
    prefixes = tuple(get_family(family).checkpoint_prefixes.values())
    for key, shape in weights.shapes.items():
        if not key.startswith(prefixes) or _LEFTOVER.match(key):
            continue
        places = keys.locate(key, shape, family, layout)
        for place in places:
            parts.setdefault(place.part, {})[place.tensor] = _piece(weights, key, place)
        if not places and not key.endswith(HARMLESS):
            unknown.append(key)
    if unknown:
        raise InputError(f"{len(unknown)} tensors have no place in the model, such as {unknown[0]}")
    trim_text(parts, family)
    return parts


def vae_pieces(weights: Weights) -> dict[str, Piece]:
    """The VAE in a file: diffusers names, LDM names with or without prefix, or a whole checkpoint."""
    layout = keys.find_layout(weights.shapes)
    pieces: dict[str, Piece] = {}
    for key, shape in weights.shapes.items():
        bare = key.removeprefix(VAE_PREFIX)
        path = keys.vae_to_diffusers(bare, layout.vae_levels) or modern_vae_name(bare)
        if path and not _LEFTOVER.match(key):
            pieces[path] = _piece(weights, key, _whole("vae", path, shape))
    return pieces


def modern_vae_name(name: str) -> str | None:
    """Today's diffusers name of a VAE tensor (older files say ``query`` for ``to_q``), or None."""
    # The number of levels cancels out on the way there and back.
    ldm = keys.vae_to_ldm(name, levels=8)
    return keys.vae_to_diffusers(ldm, levels=8) if ldm else None


def whole_piece(weights: Weights, key: str, name: str, part: str) -> Piece:
    """A piece that is a tensor of a file as it stands, called ``name`` in its module."""
    return _piece(weights, key, _whole(part, name, weights.shapes[key]))


def _whole(part: str, tensor: str, shape: tuple[int, ...]) -> keys.Place:
    path, _, kind = tensor.rpartition(".")
    return keys.Place(part, path, kind, 0, shape[0] if shape else 0)


def _piece(weights: Weights, key: str, place: keys.Place) -> Piece:
    shape = weights.shapes[key]
    if shape:
        shape = (place.stop - place.start, *shape[1:])
    if place.transposed:
        shape = shape[::-1]
    if place.part == "vae" and ".attentions." in place.path and shape[2:] == (1, 1):
        shape = shape[:2]

    def load(dtype: torch.dtype) -> Tensor:
        tensor = weights.load(key, place.start, place.stop).to(dtype)
        if place.transposed:
            tensor = tensor.T.contiguous()
        return tensor.reshape(shape)

    return Piece(shape, load)


def trim_text(parts: Parts, family: str, spare: bool = True) -> None:
    """Drop what the files hold of text encoders but Stable Diffusion does not run.

    ``spare``: also the last layer of SD 2.x, which is in checkpoints but not in diffusers folders.
    """
    facts = get_family(family)
    for part in facts.text_parts:
        pieces = parts.get(part, {})
        if part != "te2":
            pieces.pop("text_projection.weight", None)
        numbers = {
            int(name.split(".")[3]) for name in pieces if name.startswith("text_model.encoder.layers.")
        }
        if not spare or not facts.spare_text_layers or len(numbers) in (0, OPENCLIP_H_LAYERS):
            continue
        last = f"text_model.encoder.layers.{max(numbers)}."
        for name in [name for name in pieces if name.startswith(last)]:
            del pieces[name]
