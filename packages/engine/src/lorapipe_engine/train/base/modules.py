"""Build diffusers' and transformers' modules around tensors, without a second copy in memory.

A module is made on the ``meta`` device (shapes only), then each tensor is loaded, converted and put in its
place.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorapipe_engine.command.libraries import library_imports
from lorapipe_engine.errors import InputError

# Buffers and scalars of checkpoints that no module needs.
HARMLESS = ("position_ids", "logit_scale")


@dataclass(frozen=True)
class Piece:
    """One tensor of a module that can be loaded: its shape there, and how to get it in a dtype."""

    shape: tuple[int, ...]
    load: Callable[[torch.dtype], Tensor]


Pieces = Mapping[str, Piece]


def build_unet(config: Mapping[str, Any], pieces: Pieces, dtype: torch.dtype, where: str) -> Any:
    """A ``UNet2DConditionModel`` on the CPU. ``where`` names the file in errors."""
    return _filled(lambda: _make_unet(config), pieces, dtype, f"{where}: UNet")


def outline_unet(config: Mapping[str, Any], where: str) -> Any:
    """The same on the meta device, without values."""
    return _on_meta(lambda: _make_unet(config), f"{where}: UNet")


def _make_unet(config: Mapping[str, Any]) -> nn.Module:
    with library_imports():
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    module: nn.Module = UNet2DConditionModel(**config)
    return module


def build_vae(config: Mapping[str, Any], pieces: Pieces, dtype: torch.dtype, where: str) -> Any:
    """An ``AutoencoderKL`` on the CPU."""
    with library_imports():
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    return _filled(lambda: AutoencoderKL(**config), pieces, dtype, f"{where}: VAE")


def build_text_encoder(config: Mapping[str, Any], pieces: Pieces, dtype: torch.dtype, where: str) -> Any:
    """A ``CLIPTextModel``, or ``CLIPTextModelWithProjection`` where there is a ``text_projection``.

    The names in ``pieces`` start with ``text_model.`` (save the projection), whatever transformers' version.
    """
    projects = "text_projection.weight" in pieces
    where = f"{where}: text encoder"
    if not hasattr(_on_meta(lambda: _make_text_encoder(config, projects), where), "text_model"):
        pieces = {name.removeprefix("text_model."): piece for name, piece in pieces.items()}
    module = _filled(lambda: _make_text_encoder(config, projects), pieces, dtype, where)
    embeddings = getattr(module, "text_model", module).embeddings
    # Not in any file, and made on "meta" with the rest.
    embeddings.position_ids = torch.arange(config["max_position_embeddings"])[None]
    return module


def outline_text_encoder(config: Mapping[str, Any], pieces: Pieces) -> Any:
    """The same on the meta device, without values."""
    projects = "text_projection.weight" in pieces
    return _on_meta(lambda: _make_text_encoder(config, projects), "text encoder")


def _make_text_encoder(config: Mapping[str, Any], projects: bool) -> nn.Module:
    with library_imports():
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
    kind = CLIPTextModelWithProjection if projects else CLIPTextModel
    module: nn.Module = kind(CLIPTextConfig(**config))
    return module


def _on_meta(make: Callable[[], nn.Module], where: str) -> nn.Module:
    try:
        with torch.device("meta"):
            return make()
    except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise InputError(f"{where}: its shapes make no module that diffusers knows ({reason})") from error


def _filled(make: Callable[[], nn.Module], pieces: Pieces, dtype: torch.dtype, where: str) -> Any:
    module = _on_meta(make, where)
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    _check(wanted, {name: piece.shape for name, piece in pieces.items()}, where)
    module.load_state_dict({name: pieces[name].load(dtype) for name in wanted}, assign=True)
    return module.requires_grad_(False).eval()


def _check(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], where: str) -> None:
    missing = sorted(set(wanted) - set(given))
    if missing:
        raise InputError(
            f"{where}: {len(missing)} of {len(wanted)} tensors are missing, such as {missing[0]}"
        )
    extra = sorted(name for name in set(given) - set(wanted) if not name.endswith(HARMLESS))
    if extra:
        raise InputError(f"{where}: {len(extra)} tensors have no place in the model, such as {extra[0]}")
    wrong = [name for name in wanted if wanted[name] != given[name]]
    if wrong:
        name = wrong[0]
        raise InputError(
            f"{where}: {len(wrong)} tensors have another shape than the rest of the model asks for, "
            f"such as {name} {given[name]} instead of {wanted[name]}"
        )


def place(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A module, frozen, on a device in a precision."""
    # Torch's own ``to``: that of diffusers warns about every change of the dtype.
    return nn.Module.to(module.requires_grad_(False).eval(), device, dtype)


def weights_key(modules: Sequence[nn.Module], dtype: torch.dtype) -> str:
    """A name for the bytes of modules in a precision."""
    digest = hashlib.sha256(str(dtype).encode())
    for number, module in enumerate(modules):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{number}.{name}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
