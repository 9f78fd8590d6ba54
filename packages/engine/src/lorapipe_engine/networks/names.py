"""Names of tensors in network files: every program's spelling, brought to one name for a module and one for a tensor.

A name is a beginning (which part of the model), a path (which layer) and a suffix (which tensor of the module).
Flat names keep kohya's form (``lora_unet_down_blocks_0_...``). Dotted names get diffusers' and transformers' paths
with the part in front (``unet.down_blocks.0...``, ``text_encoder.text_model...``), whatever program wrote them.
Suffixes are kohya's and LyCORIS' (``lora_down.weight``).

Spellings: the field's programs as of 2026, see docs/which-file-where.md.
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from lorapipe_engine.models.keys import unet_to_diffusers
from lorapipe_engine.networks.algorithms import known_suffixes


class TensorName(NamedTuple):
    """A tensor's name, understood.

    ``module``: canonical name of the module. ``suffix``: which of its tensors. ``path``: the layer as the file spells
    it, without the suffix. ``adapter``: the name that PEFT gave to the adapter, "" where there is none.
    """

    module: str
    suffix: str
    path: str
    adapter: str = ""


_SIDES = {"A": "down", "B": "up", "down": "down", "up": "up"}
# PEFT puts the adapter's name, dots and all, between the parameter and "weight".
_PEFT = re.compile(
    r"(?P<path>.+?)\.lora_(?P<side>[AB])(?:\.(?P<adapter>.+))?\.(?P<kind>weight|bias)", re.DOTALL
)
_PEFT_BARE = re.compile(r"(?P<path>.+?)\.lora_(?P<side>[AB])", re.DOTALL)
_DIFFUSERS = re.compile(
    r"(?P<path>.+?)(?:\.lora_linear_layer|\.lora|(?P<glued>_lora))\.(?P<side>down|up)\.weight", re.DOTALL
)
_MAGNITUDE = re.compile(
    r"(?P<path>.+?)\.(?:lora_magnitude_vector(?:\.(?P<adapter>.+?))??(?:\.weight)?|magnitude)", re.DOTALL
)
_FLAT_START = re.compile(r"(?:lora|oft|lycoris)_(?:unet|te\d?)\.")
_FLAT = re.compile(r"(?P<path>(?:lora|oft|lycoris)_[^.]+)\.(?P<suffix>.+)", re.DOTALL)
# PEFT writes LoHa and LoKr with an adapter's name too.
_DOTTED_ADAPTER = re.compile(
    r"(?P<path>.+?)\.(?P<suffix>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))\.(?P<adapter>.+)"
)

_DIFFUSERS_UNET = re.compile(
    r"(down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding|add_embedding)(\.|$)"
)
_LDM_UNET = re.compile(r"(input_blocks|middle_block|output_blocks|out|time_embed|label_emb)\.\d")
_TEXT = re.compile(r"(text_model|encoder\.layers|embeddings|final_layer_norm)(\.|$)")
_PROJECTION = re.compile(r"text_projection(\.|$)")
# What dotted names begin with, and the part that follows it.
_BEGINNINGS = (
    ("text_encoders.clip_l.transformer.", "text_encoder."),
    ("text_encoders.clip_h.transformer.", "text_encoder."),
    ("text_encoders.clip_g.transformer.", "text_encoder_2."),
    ("clip_l.", "text_encoder."),
    ("clip_g.", "text_encoder_2."),
    ("model.diffusion_model.", "unet."),
    ("diffusion_model.", "unet."),
)
# What wrappers of modules put into names: torch's compile and its data parallel, and PEFT's below the part's name.
_WRAPPER = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module|base_model\.model)\.")
_FLAT_WRAPPER = re.compile(
    r"^((?:lora|oft|lycoris)_(?:unet|te\d?)_)(?:_orig_mod_|module_(?=\w+_blocks?_|text_model_))"
)
# Attention layers by the names that diffusers' processors gave them up to 0.17, in text encoders.
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def read_name(name: str) -> TensorName | None:
    """Understand a tensor's name; None for a name that is no network's."""
    flat = _FLAT.fullmatch(name)
    if flat and (suffix := _flat_suffix(flat["suffix"])):
        return TensorName(_flat_module(flat["path"]), suffix, flat["path"])
    for read in (_read_peft, _read_diffusers, _read_dotted):
        if tensor := read(name):
            if flat or _FLAT_START.match(name):  # a flat name that has kept its dots
                return tensor._replace(module=_flat_module(tensor.path.replace(".", "_")))
            return tensor
    return None


def _flat_suffix(suffix: str) -> str | None:
    if suffix in known_suffixes():
        return suffix
    tensor = read_name(f"x.{suffix}")  # kohya's layer with another program's factors
    return tensor.suffix if tensor and tensor.path == "x" else None


def _flat_module(path: str) -> str:
    """A flat name as kohya's trainer spells it, apart from its first word."""
    path = _FLAT_WRAPPER.sub(r"\1", path)
    head, _, rest = path.partition("_")
    if head == "lycoris" and not re.match(r"(unet|te\d?)_", rest):
        return f"lycoris_unet_{rest}"  # a wrapper around the UNet alone
    return re.sub(
        r"^((?:lora|oft|lycoris)_te\d?)_(encoder_layers_|embeddings_|final_layer_norm)",
        r"\1_text_model_\2",
        path,
    )


def _read_peft(name: str) -> TensorName | None:
    if match := _PEFT.fullmatch(name) or _PEFT_BARE.fullmatch(name):
        groups = match.groupdict()
        suffix = f"lora_{_SIDES[match['side']]}.{groups.get('kind') or 'weight'}"
        if suffix == "lora_down.bias":
            return None
        return TensorName(_module(match["path"]), suffix, match["path"], groups.get("adapter") or "")
    if match := _MAGNITUDE.fullmatch(name):
        return TensorName(_module(match["path"]), "dora_scale", match["path"], match["adapter"] or "")
    return None


def _read_diffusers(name: str) -> TensorName | None:
    match = _DIFFUSERS.fullmatch(name)
    if match is None:
        return None
    path = match["path"]
    if match["glued"]:
        path = path.replace(".processor.", ".")
    return TensorName(_module(path), f"lora_{match['side']}.weight", match["path"])


@cache
def _dotted(suffixes: frozenset[str]) -> re.Pattern[str]:
    """Of dotted names: path and suffix. "weight" alone would match every layer of every model."""
    own = "|".join(re.escape(suffix) for suffix in sorted(suffixes - {"weight"}, key=len, reverse=True))
    return re.compile(rf"(?P<path>.+?)\.(?P<suffix>{own})", re.DOTALL)


def _read_dotted(name: str) -> TensorName | None:
    if match := _dotted(known_suffixes()).fullmatch(name):
        return TensorName(_module(match["path"]), match["suffix"], match["path"])
    if match := _DOTTED_ADAPTER.fullmatch(name):
        return TensorName(_module(match["path"]), match["suffix"], match["path"], match["adapter"])
    return None


def _module(path: str) -> str:
    """The canonical name of a dotted path; the path itself where it is not known."""
    name = _WRAPPER.sub("", path)
    for beginning, part in _BEGINNINGS:
        if name.startswith(beginning):
            name = part + name.removeprefix(beginning)
            break
    else:
        if _DIFFUSERS_UNET.match(name) or _LDM_UNET.match(name):
            name = f"unet.{name}"
        elif _PROJECTION.match(name):  # which the second text encoder alone has
            name = f"text_encoder_2.{name}"
        elif _TEXT.match(name):
            name = f"text_encoder.{name}"
    if name.startswith("unet."):
        return f"unet.{_unet_path(name.removeprefix('unet.'))}"
    if match := re.match(r"text_encoder(?:_2)?\.", name):
        return match[0] + _text_path(name[match.end() :])
    return name


def _unet_path(path: str) -> str:
    if _LDM_UNET.match(path):
        return unet_to_diffusers(path) or path
    if match := re.fullmatch(
        r"(.+\.attn[12])\.to_out", path
    ):  # diffusers up to 0.21 leaves the list's number out
        return f"{match[1]}.to_out.0"
    return path


def _text_path(path: str) -> str:
    # transformers from version 5 on leaves the level "text_model" out.
    path = re.sub(r"^(encoder|embeddings|final_layer_norm)\.", r"text_model.\1.", path)
    if match := re.fullmatch(r"(.+\.self_attn)\.(to_\w+)", path):
        return f"{match[1]}.{_OLD_TEXT.get(match[2], match[2])}"
    return path
