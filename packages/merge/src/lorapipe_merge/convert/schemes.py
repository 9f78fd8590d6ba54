"""The schemes that a network can be written in: names of modules, of their tensors, and where strengths go.

A new scheme is a function and a row here. Names: what the programs' own readers understand, see
docs/which-file-where.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lorapipe_engine.models.families import get_family
from lorapipe_engine.models.keys import lora_name, unet_to_ldm
from lorapipe_engine.networks.layers import Layer

Naming = Callable[[str, Layer, str], str]  # family, layer, suffix in kohya's terms -> name in the file


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One scheme. ``name_of`` names a tensor. ``alphas``: strengths are alpha tensors; else they are in the factors,
    or (``config``) in a configuration beside the file. ``lycoris``: LoHa, LoKr, full changes and their like can be
    written as they are. ``dora``: magnitudes by output alone, else both kinds. ``whole_kronecker``: its reader cannot
    multiply LoKr's Tucker cores. ``folder``: each part is a folder of its own. ``dotted``: names have dots.
    """

    name: str
    title: str
    name_of: Naming
    alphas: bool = False
    config: bool = False
    lycoris: bool = False
    whole_kronecker: bool = False
    folder: bool = False
    dotted: bool = True
    embeddings: bool = False


_DIFFUSERS_TEXT = {"te1": "text_encoder", "te2": "text_encoder_2"}
_DOTTED = {
    "lora_down.weight": "lora_A.weight",
    "lora_up.weight": "lora_B.weight",
    "dora_scale": "lora_magnitude_vector",
    "lora_up.bias": "lora_B.bias",
}
_OLD = {"lora_down.weight": "down.weight", "lora_up.weight": "up.weight"}


def _kohya(family: str, layer: Layer, suffix: str) -> str:
    return f"{lora_name(family, layer.part, layer.path)}.{suffix}"


def _diffusers(family: str, layer: Layer, suffix: str) -> str:
    del family
    return f"{_DIFFUSERS_TEXT.get(layer.part, 'unet')}.{layer.path}.{_DOTTED.get(suffix, suffix)}"


def _diffusers_old(family: str, layer: Layer, suffix: str) -> str:
    """diffusers 0.18 to 0.21: what its loaders of today and ComfyUI's both read whole."""
    del family
    end = _OLD.get(suffix, suffix)
    if layer.part != "unet":
        return f"{_DIFFUSERS_TEXT[layer.part]}.{layer.path}.lora_linear_layer.{end}"
    attention, _, projection = layer.path.rpartition(".to_")
    if attention:
        return f"unet.{attention}.processor.to_{projection.removesuffix('.0')}_lora.{end}"
    return f"unet.{layer.path}.lora.{end}"


def _peft(family: str, layer: Layer, suffix: str) -> str:
    del family
    path = layer.path
    if layer.part == "te1":  # transformers from version 5 on has no such level in this class
        path = path.removeprefix("text_model.")
    return f"base_model.model.{path}.{_DOTTED.get(suffix, suffix)}"


def _comfy(family: str, layer: Layer, suffix: str) -> str:
    if layer.part == "unet":
        return f"diffusion_model.{_ldm(family, layer)}.{suffix}"
    encoder = {"te1": "clip_h" if family == "sd2" else "clip_l", "te2": "clip_g"}[layer.part]
    return f"text_encoders.{encoder}.transformer.{layer.path}.{suffix}"


def _omi(family: str, layer: Layer, suffix: str) -> str:
    if layer.part == "unet":
        return f"unet.{_ldm(family, layer)}.{suffix}"
    return f"{ {'te1': 'clip_l', 'te2': 'clip_g'}[layer.part] }.{layer.path}.{suffix}"


def _ldm(family: str, layer: Layer) -> str:
    return unet_to_ldm(layer.path, 2, get_family(family).plain_up_blocks) or layer.path


_ROWS = (
    Scheme(
        name="kohya",
        title="sd-scripts' names, which A1111, Forge and ComfyUI read",
        name_of=_kohya,
        alphas=True,
        lycoris=True,
        dotted=False,
        embeddings=True,
    ),
    Scheme(name="diffusers", title="diffusers' names of today", name_of=_diffusers),
    Scheme(
        name="diffusers-old",
        title="diffusers' names of 0.18 to 0.21, which ComfyUI reads too",
        name_of=_diffusers_old,
    ),
    Scheme(
        name="peft",
        title="PEFT's folders, one for each part of the model",
        name_of=_peft,
        config=True,
        folder=True,
    ),
    Scheme(
        name="comfy",
        title="ComfyUI's own names",
        name_of=_comfy,
        alphas=True,
        lycoris=True,
        whole_kronecker=True,
    ),
    Scheme(
        name="omi",
        title="OneTrainer's names of the open model initiative",
        name_of=_omi,
        alphas=True,
        lycoris=True,
        embeddings=True,
    ),
)
SCHEMES: Mapping[str, Scheme] = {row.name: row for row in _ROWS}
