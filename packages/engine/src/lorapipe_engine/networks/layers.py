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
    if match := _DIFFUSERS.fullmatch(flat):
        block = f"{match['side']}_blocks.{match['level']}" if match["side"] else "mid_block"
        if match["resnet"]:
            return f"{block}.resnets.{match['number']}.{match['resnet']}"
        if match["sampler"]:
            return f"{block}.{match['sampler']}.{match['at']}.conv"
        return f"{block}.attentions.{match['attention']}.{_in_attention(match)}"
    if match := _ENDS.fullmatch(flat):
        if match["ldm"]:
            return unet_to_diffusers(re.sub(r"_(?=\d)", ".", match["ldm"]))
        return match["plain"] or f"{match['kind']}_embedding.{match['linear']}"
    if match := _LDM.fullmatch(flat):
        block = re.sub(r"_(\d+)$", r".\1", match["block"])
        rest = match["resnet"] and re.sub(r"_(\d)$", r".\1", match["resnet"])
        rest = rest or match["plain"] or (_in_attention(match) if match["depth"] or match["around"] else "")
        return unet_to_diffusers(".".join(filter(None, (block, match["slot"], rest))))
    return None


def _in_attention(match: re.Match[str]) -> str:
    if match["around"]:
        return str(match["around"])
    layer = re.sub(r"^(attn[12])_", r"\1.", match["layer"]).replace("to_out_0", "to_out.0")
    layer = {"ff_net_0_proj": "ff.net.0.proj", "ff_net_2": "ff.net.2"}.get(layer, layer)
    return f"transformer_blocks.{match['depth']}.{layer}"


def _text_path(flat: str) -> str | None:
    match = _TEXT.fullmatch(flat)
    if match is None:
        return None
    if match["projection"]:
        return "text_projection"
    if match["end"]:
        return "text_model.final_layer_norm"
    if match["embedding"]:
        return f"text_model.embeddings.{match['embedding']}"
    inner = (
        f"self_attn.{match['attention']}" if match["attention"] else match["norm"] or f"mlp.{match['mlp']}"
    )
    return f"text_model.encoder.layers.{match['number']}.{inner}"
