"""What a base model's files say before any tensor is read: family, parts, prediction type."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.folders import hints, read_config, read_scheduler, weight_files
from lorapipe_engine.models import keys
from lorapipe_engine.models.bases import describe_kind, explain_base
from lorapipe_engine.models.families import Recognised, get_family, recognise
from lorapipe_engine.models.predictions import find_prediction, marked_prediction, scheduler_prediction
from lorapipe_engine.train.base import hub
from lorapipe_engine.train.base.ldm import (
    Parts,
    modern_vae_name,
    split_checkpoint,
    trim_text,
    vae_pieces,
    whole_piece,
)
from lorapipe_engine.train.base.modules import Piece
from lorapipe_engine.train.base.weights import SUFFIXES, Weights

# Facts in configuration files that tensors cannot tell, by the part.
UNET_HINTS = (
    *("attention_head_dim", "norm_num_groups", "norm_eps", "act_fn", "flip_sin_to_cos", "freq_shift"),
    *("addition_time_embed_dim", "upcast_attention", "downsample_padding", "mid_block_scale_factor"),
)
VAE_HINTS = ("norm_num_groups", "act_fn", "scaling_factor", "shift_factor")
CLIP_HINTS = ("hidden_act", "num_attention_heads", "layer_norm_eps")
FOLDERS = {"unet": "unet", "vae": "vae", "te1": "text_encoder", "te2": "text_encoder_2"}

SD2_BASE_STEPS = "875000"  # of SD 2.0's 512 model, in its .ckpt


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A base model whose files are open. ``hints``: by part, what configuration files say.

    ``tokenizers``: for each text encoder the folders where its tokenizer may lie.
    """

    family: str
    path: Path
    parts: Parts
    hints: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    tokenizers: tuple[tuple[Path, ...], ...]
    prediction_type: str | None
    zero_terminal_snr: bool = False
    encoder_layer: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def resolve(source: str | Path, dtype: torch.dtype) -> Path:
    """The file or folder that a source stands for; fetches a hub id. Raises InputError if there is none."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    name = str(source)
    if hub.is_hub_id(name) and path.suffix.lower() not in SUFFIXES:
        return hub.fetch_base(name, half=dtype != torch.float32)
    raise InputError(f"{source}: no such file or folder")


def read_base(path: Path, stack: ExitStack, weights: Weights | None = None) -> Draft:
    """Open a checkpoint or a diffusers folder; ``stack`` closes it. ``weights``: the checkpoint, where it is open
    already. Raises InputError for other kinds."""
    if path.is_dir():
        return _read_folder(path, stack)
    return _read_file(path, weights or stack.enter_context(Weights([path])))


def read_vae(path: Path, stack: ExitStack) -> tuple[dict[str, Piece], dict[str, Any]]:
    """The VAE in a file (alone or in a checkpoint) or a folder, and what its configuration says."""
    config: dict[str, Any] = {}
    files = [path]
    if path.is_dir():
        folder = path / "vae" if (path / "vae").is_dir() else path
        files, config = weight_files(folder), read_config(folder / "config.json")
        if not files:
            raise InputError(f"{path}: no VAE in this folder (diffusion_pytorch_model.safetensors)")
    weights = stack.enter_context(Weights(files))
    pieces = vae_pieces(weights)
    if not pieces:
        raise InputError(f"{path}: no VAE in this file (it is {describe_kind(recognise(weights.shapes))})")
    return pieces, hints(config, ("norm_num_groups", "act_fn"))


# ------------------------------------------------------------ single files


def _read_file(path: Path, weights: Weights) -> Draft:
    recognised = recognise(weights.shapes)
    if recognised.kind != "checkpoint" or recognised.family is None:
        raise InputError(f"{path}: this is {explain_base(recognised)}")
    try:
        parts = split_checkpoint(weights, recognised.family)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    metadata = weights.metadata
    beside = (path.parent / "tokenizer", path.parent)
    return Draft(
        family=recognised.family,
        path=path,
        parts=parts,
        tokenizers=(beside,) * len(get_family(recognised.family).text_parts),
        prediction_type=_prediction_of_file(weights, recognised.family),
        zero_terminal_snr="ztsnr" in weights.shapes,
        encoder_layer=_encoder_layer(metadata),
        metadata=metadata,
    )


def _prediction_of_file(weights: Weights, family: str) -> str | None:
    said = weights.metadata.get("modelspec.prediction_type", "").lower()
    if known := marked_prediction(weights.shapes) or find_prediction(said):
        return known
    kind = weights.metadata.get("modelspec.architecture", "")
    if kind.startswith("stable-diffusion-v2"):
        return "v_prediction" if "-768-v" in kind else "epsilon"
    if weights.metadata.get("global_step") == SD2_BASE_STEPS:
        return "epsilon"
    return get_family(family).prediction


def _encoder_layer(metadata: Mapping[str, str]) -> int | None:
    said = metadata.get("modelspec.encoder_layer", "")
    return int(said) if said.isdecimal() and int(said) > 0 else None


# -------------------------------------------------------------------------------------------------- folders


def _read_folder(path: Path, stack: ExitStack) -> Draft:
    if not (path / "unet").is_dir():
        raise InputError(f"{path}: not a diffusers folder (no unet in it); give one, or a checkpoint file")
    parts: Parts = {}
    for part, folder in FOLDERS.items():
        inside = path / folder
        if inside.is_dir():
            parts[part] = _pieces_of(part, inside, stack)
    configs = {part: read_config(path / folder / "config.json") for part, folder in FOLDERS.items()}
    family = _family_of(path, parts, configs)
    trim_text(parts, family, spare=False)
    wanted = {"unet": UNET_HINTS, "vae": VAE_HINTS}
    count = len(get_family(family).text_parts)
    scheduler = read_scheduler(path)
    return Draft(
        family=family,
        path=path,
        parts=parts,
        hints={part: hints(config, wanted.get(part, CLIP_HINTS)) for part, config in configs.items()},
        tokenizers=((path / "tokenizer",), (path / "tokenizer_2", path / "tokenizer"))[:count],
        prediction_type=scheduler_prediction(scheduler) or get_family(family).prediction,
        zero_terminal_snr=scheduler.get("rescale_betas_zero_snr") is True,
    )


def _pieces_of(part: str, folder: Path, stack: ExitStack) -> dict[str, Piece]:
    files = weight_files(folder)
    if not files:
        raise InputError(
            f"{folder}: no weights in it (such as model.safetensors, or a variant .fp16.safetensors)"
        )
    weights = stack.enter_context(Weights(files))
    pieces = {}
    for key in weights.shapes:
        name = key
        if part == "vae":
            name = modern_vae_name(key) or key
        elif part != "unet":
            name = keys.text_path(key)
        pieces[name] = whole_piece(weights, key, name, part)
    return pieces


def _family_of(path: Path, parts: Parts, configs: Mapping[str, Mapping[str, Any]]) -> str:
    shapes = {name: piece.shape for name, piece in parts["unet"].items()}
    unet = recognise(shapes)
    if ("te2" in parts and "te1" not in parts) or unet.kind == "refiner":
        raise InputError(f"{path}: this is {explain_base(Recognised('refiner'))}")
    if unet.kind != "unet":
        raise InputError(f"{path}: its unet is {explain_base(unet)}")
    if "te2" in parts or unet.family == "sdxl":
        return "sdxl"
    # The activation tells OpenCLIP from CLIP-L more surely than the layers around the UNet's attention.
    activation = configs["te1"].get("hidden_act")
    return {"gelu": "sd2", "quick_gelu": "sd1"}.get(str(activation), unet.family or "sd1")
