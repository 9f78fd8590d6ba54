"""Model families that people hold networks for and that are not trained here, and files that are no networks: known by
name, so that a message can say what a file is, and what it is for.

Signs: names of layers in the files of the field's programs, as of 2026.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

_PREFIX = re.compile(
    r"(base_model[._]model[._])?(model[._]diffusion_model[._]|diffusion_model[._]|transformer[._]|unet[._]"
    r"|(lora|lycoris|oft)_(unet|transformer)_+|lycoris_)?"
)

_FLAT = re.compile(r"(lora|lycoris|oft)_")
# The first family counts one of whose signs is found. Names have "_" in the place of every dot.
_SIGNS: tuple[tuple[str, str], ...] = (
    ("Chroma", r"distilled_guidance_layer"),
    ("Flux.2", r"\w*attn_to_qkv_mlp_proj|\w*double_stream_modulation"),
    ("Hunyuan Video", r"\w*individual_token_refiner"),
    ("Flux.1", r"double_blocks_\d+_(img|txt)_|single_blocks_\d+_|single_transformer_blocks_\d+_"),
    ("Qwen-Image", r"transformer_blocks_\d+_(img|txt)_(mlp|mod)"),
    (
        "Stable Diffusion 3",
        r"joint_blocks_\d+_|transformer_blocks_\d+_(attn_add_[qkv]_proj|ff_context|attn2_to)",
    ),
    (
        "Anima",
        r"(\w*_)?llm_adapter_|blocks_\d+_(self|cross)_attn_([qkv]_proj|output_proj)|blocks_\d+_mlp_layer[12]",
    ),
    ("Wan", r"blocks_\d+_((self|cross)_attn_([qkvo]|k_img|v_img)|ffn_[02])(_|$)"),
    ("HiDream", r"double_stream_blocks_\d+"),
    ("AuraFlow", r"joint_transformer_blocks_\d+"),
    ("PixArt or LTX-Video", r"transformer_blocks_\d+_attn[12]_"),
    ("a model with a T5 text encoder", r"\w*encoder_block_\d+_layer_\d+_(SelfAttention|DenseReluDense)"),
    ("a language model", r"(model_)?layers_\d+_(self_attn_[qkvo]_proj|mlp_(gate|up|down)_proj)"),
)
_NEXT_DIT = re.compile(r"(layers|noise_refiner|context_refiner)_\d+_(attention|feed_forward_w[123])")
_Z_IMAGE_WIDTH = 3840


def foreign_family(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The name of the family that a file's tensors belong to; None where they show no sign of one in this table."""
    if any(name.startswith(("lora_prior_unet", "lora_prior_te")) for name in shapes):
        return "Stable Cascade"
    names = {name: _bare(name) for name in shapes}
    # Flat names write Flux.1's img_attn.qkv so too.
    if any("img_attn_qkv" in name and not _FLAT.match(name) for name in shapes):
        return "Hunyuan Video"
    bare = _blocks_only(names.values())
    for title, sign in _SIGNS:
        pattern = re.compile(sign)
        # SD3 and Flux.1 share the names of their joint blocks; Flux.1 alone has single ones.
        if any(pattern.match(name) for name in bare):
            return title
    if next_dit := [name for name, text in names.items() if _NEXT_DIT.match(text)]:
        widths = {size for name in next_dit for size in shapes[name]}
        return "Z-Image" if _Z_IMAGE_WIDTH in widths else "Lumina 2 or Z-Image"
    return None


def _bare(name: str) -> str:
    return _PREFIX.sub("", name, count=1).replace(".", "_").lstrip("_")


def _blocks_only(names: Collection[str]) -> list[str]:
    """One name of each kind: numbers do not tell families apart."""
    return list({re.sub(r"\d+", "0", name): name for name in names}.values())


# Other files that people keep beside networks, each with the sign of its tensors' names.
_NO_NETWORKS: tuple[tuple[str, str], ...] = (
    ("a ControlNet", r"(control_model|controlnet_cond_embedding|controlnet_(down_blocks|mid_block))\."),
    ("a Control-LoRA, which goes with ControlNet", r"lora_controlnet$"),
    ("a ControlNet-LLLite", r"lllite_"),
    ("an IP-Adapter", r"(ip_adapter|image_proj)\."),
    ("a LoRA of cloneofsimo's first trainer, whose names do not tell the layers", r"\w+:\d+:(up|down)$"),
    ("a hypernetwork", r"\d+\.\d\.(linear\d?\.)+"),
    ("AnimateDiff's motion modules", r".*motion_modules\."),
)
_EMBEDDING = re.compile(
    r"emb_params|string_to_(param|token)(\..+)?|clip_[lg]|text_encoders_\d+|<.+>", re.DOTALL
)


def no_network(names: Collection[str]) -> str | None:
    """What a file with these tensors is that people keep beside networks, in words; None for all else."""
    for title, sign in _NO_NETWORKS:
        pattern = re.compile(sign)
        if any(pattern.match(name) for name in names):
            return title
    return "an embedding (textual inversion)" if names and all(map(_EMBEDDING.fullmatch, names)) else None
