"""The layer that a module's name means: its part and its canonical path, dots and all.

Flat names do not tell where the dots were, so they are read by the grammar of the models' layers.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from lorapipe_engine.models.keys import unet_to_diffusers
from lorapipe_engine.networks.describe import part_of


class Layer(NamedTuple):
    """A layer: "unet", "te1" or "te2", and its diffusers' or transformers' path (see ``models.keys``)."""

    part: str
    path: str


_DOTTED = re.compile(r"(?:unet|text_encoder(?:_2)?)\.(.+)", re.DOTALL)
_FLAT = re.compile(r"(?:lora|oft|lycoris)_(?:unet|te[12]?)_(.+)", re.DOTALL)

_TRANSFORMER = (
    r"(?:transformer_blocks_(?P<depth>\d+)_"
    r"(?P<layer>attn[12]_to_[qkv]|attn[12]_to_out_0|ff_net_0_proj|ff_net_2|norm[123])"
    r"|(?P<around>proj_in|proj_out|norm))"
)
_DIFFUSERS = re.compile(
    r"(?:(?P<side>down|up)_blocks_(?P<level>\d+)|mid_block)_"
    r"(?:(?P<child>resnets)_(?P<number>\d+)_(?P<resnet>conv1|conv2|conv_shortcut|time_emb_proj|norm1|norm2)"
    rf"|attentions_(?P<attention>\d+)_{_TRANSFORMER}"
    r"|(?P<sampler>downsamplers|upsamplers)_(?P<at>\d+)_conv)"
)
_LDM = re.compile(
    r"(?P<block>(?:input|output)_blocks_\d+|middle_block)_(?P<slot>\d)_?"
    rf"(?:(?P<resnet>(?:in|out|emb)_layers_\d)|(?P<plain>skip_connection|op|conv)|{_TRANSFORMER}|(?P<nothing>))"
)
_ENDS = re.compile(
    r"(?P<plain>conv_in|conv_out|conv_norm_out)|(?P<kind>time|add)_embedding_(?P<linear>linear_[12])"
    r"|(?P<ldm>time_embed_[02]|label_emb_0_[02]|out_[02])"
)
_TEXT = re.compile(
    r"(?:text_model_)?(?:encoder_layers_(?P<number>\d+)_"
    r"(?:self_attn_(?P<attention>[qkv]_proj|out_proj)|mlp_(?P<mlp>fc[12])|(?P<norm>layer_norm[12]))"
    r"|(?P<end>final_layer_norm)|embeddings_(?P<embedding>token_embedding|position_embedding))"
    r"|(?P<projection>text_projection)"
)


def layer_of(name: str) -> Layer | None:
    """The layer of a module called ``name`` (see ``networks.names``); None where the name follows no pattern."""
    part = part_of(name)
    if part == "other":
        return None
    if dotted := _DOTTED.fullmatch(name):
        return Layer(part, dotted[1])
    flat = _FLAT.fullmatch(name)
    if flat is None:
        return None
    path = _unet_path(flat[1]) if part == "unet" else _text_path(flat[1])
    return None if path is None else Layer(part, path)


def kernel_around(path: str, family: str) -> tuple[int, ...] | None:
    """The kernel of a layer around attention: (1, 1) in SD 1.x, () where the family's are linear; None for others."""
    if ".attentions." not in path or not path.endswith((".proj_in", ".proj_out")):
        return None
    return (1, 1) if family == "sd1" else ()


def kernel_in(family: str | None, name: str, stored: tuple[int, ...]) -> tuple[int, ...]:
    """The kernel of the layer that a module called ``name`` changes, where its factors are ``stored`` with one.

    Programs disagree about layers around attention, and the family tells; all else is as it is stored.
    """
    layer = layer_of(name) if family is not None and stored in ((), (1, 1)) else None
    around = None if layer is None else kernel_around(layer.path, family or "")
    return stored if around is None else around


def _unet_path(flat: str) -> str | None:
    if found := _DIFFUSERS.fullmatch(flat):
        block = f"{found['side']}_blocks.{found['level']}" if found["side"] else "mid_block"
        if found["resnet"]:
            return f"{block}.resnets.{found['number']}.{found['resnet']}"
        if found["sampler"]:
            return f"{block}.{found['sampler']}.{found['at']}.conv"
        return f"{block}.attentions.{found['attention']}.{_in_attention(found)}"
    if found := _ENDS.fullmatch(flat):
        if found["ldm"]:
            return unet_to_diffusers(re.sub(r"_(?=\d)", ".", found["ldm"]))
        return found["plain"] or f"{found['kind']}_embedding.{found['linear']}"
    if found := _LDM.fullmatch(flat):
        block = re.sub(r"_(\d+)$", r".\1", found["block"])
        rest = found["resnet"] and re.sub(r"_(\d)$", r".\1", found["resnet"])
        rest = rest or found["plain"] or (_in_attention(found) if found["depth"] or found["around"] else "")
        return unet_to_diffusers(".".join(filter(None, (block, found["slot"], rest))))
    return None


def _in_attention(found: re.Match[str]) -> str:
    if found["around"]:
        return str(found["around"])
    layer = re.sub(r"^(attn[12])_", r"\1.", found["layer"]).replace("to_out_0", "to_out.0")
    layer = {"ff_net_0_proj": "ff.net.0.proj", "ff_net_2": "ff.net.2"}.get(layer, layer)
    return f"transformer_blocks.{found['depth']}.{layer}"


def _text_path(flat: str) -> str | None:
    found = _TEXT.fullmatch(flat)
    if found is None:
        return None
    if found["projection"]:
        return "text_projection"
    if found["end"]:
        return "text_model.final_layer_norm"
    if found["embedding"]:
        return f"text_model.embeddings.{found['embedding']}"
    inner = (
        f"self_attn.{found['attention']}" if found["attention"] else found["norm"] or f"mlp.{found['mlp']}"
    )
    return f"text_model.encoder.layers.{found['number']}.{inner}"
