"""Names of Stable Diffusion's layers in checkpoints (LDM, SGM and OpenCLIP names), in diffusers and transformers.

The canonical path of a layer is its diffusers path in UNet and VAE (``down_blocks.0.attentions.1.proj_in``)
and its transformers path in text encoders, always with ``text_model.``
(``text_model.encoder.layers.0.self_attn.q_proj``).

Functions on paths take a layer's path or a tensor's name alike; what follows the layer (``.weight``) is kept.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import ClassVar, NamedTuple

from lorapipe_engine.models.family import STANDARD, Family, Layout, Names, Place, flat_name, whole_place

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

# -------------------------------------------------------------------------------- renaming

_Pairs = tuple[tuple[str, str], ...]

_UNET_ENDS: _Pairs = (
    ("input_blocks.0.0", "conv_in"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("middle_block.0", "mid_block.resnets.0"),
    ("middle_block.1", "mid_block.attentions.0"),
    ("middle_block.2", "mid_block.resnets.1"),
)
_UNET_RESNET: _Pairs = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("emb_layers.1", "time_emb_proj"),
    ("skip_connection", "conv_shortcut"),
)
_VAE_ENDS: _Pairs = (
    ("norm_out", "conv_norm_out"),
    ("mid.block_1", "mid_block.resnets.0"),
    ("mid.attn_1", "mid_block.attentions.0"),
    ("mid.block_2", "mid_block.resnets.1"),
)
_VAE_RESNET: _Pairs = (("nin_shortcut", "conv_shortcut"),)
_VAE_ATTENTION: _Pairs = (
    ("norm", "group_norm"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
)
_OPENCLIP_LAYER: _Pairs = (
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)


def _swap(path: str, pairs: _Pairs, back: bool = False) -> str | None:
    """``path`` with the first of the pairs that it is, or begins with, replaced; None if there is none."""
    for pair in pairs:
        old, new = pair[::-1] if back else pair
        if path == old or path.startswith(old + "."):
            return new + path[len(old) :]
    return None


# -------------------------------------------------------------------------------- UNet


def unet_to_diffusers(ldm_path: str, layers_per_block: int = 2) -> str | None:
    """LDM path (without ``model.diffusion_model.``) -> diffusers path; None for a path of another pattern.

    ``input_blocks.4.1.proj_in`` -> ``down_blocks.1.attentions.0.proj_in``. Any number of levels.
    """
    if swapped := _swap(ldm_path, _UNET_ENDS):
        return _resnet_layer(swapped)
    match = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)(?:\.(.+))?", ldm_path)
    if match is None:
        return None
    side, slot, rest = match[1], int(match[3]), match[4] or ""
    number = int(match[2]) - (side == "input")
    level, layer = divmod(number, layers_per_block + 1)
    if side == "input" and layer == layers_per_block:
        return _join(
            f"down_blocks.{level}.downsamplers.0", _swap(rest, (("op", "conv"),)) if slot == 0 else None
        )
    block = f"{'down' if side == 'input' else 'up'}_blocks.{level}"
    if side == "output" and slot in (1, 2) and (rest == "conv" or rest.startswith("conv.")):
        return f"{block}.upsamplers.0.{rest}" if layer == layers_per_block else None
    if slot > 1:
        return None
    child = f"{block}.{('resnets', 'attentions')[slot]}.{layer}"
    return _resnet_layer(f"{child}.{rest}" if rest else child)


def unet_to_ldm(path: str, layers_per_block: int = 2, plain_up_blocks: Collection[int] = ()) -> str | None:
    """Diffusers path -> LDM path without prefix; None for a path of another pattern.

    ``plain_up_blocks`` are up blocks without attention: their upsampler is number 1 instead of 2 in LDM names
    (block 0 of SD 1.x and 2.x, see ``Family.plain_up_blocks``).
    """
    resnet = re.fullmatch(r"(.+\.resnets\.\d+)\.(.+)", path)
    if resnet:
        path = f"{resnet[1]}.{_swap(resnet[2], _UNET_RESNET, back=True) or resnet[2]}"
    if swapped := _swap(path, _UNET_ENDS, back=True):
        return swapped
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)(?:\.(.+))?", path)
    if match is None:
        return None
    side, level, child, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5] or ""
    first = level * (layers_per_block + 1) + (side == "down")
    last = first + layers_per_block
    if child in ("resnets", "attentions"):
        root = (
            f"{'input' if side == 'down' else 'output'}_blocks.{first + layer}.{int(child == 'attentions')}"
        )
        return f"{root}.{rest}" if rest else root
    if (side, child) == ("down", "downsamplers"):
        return _join(f"input_blocks.{last}.0", _swap(rest, (("conv", "op"),)))
    if (side, child) == ("up", "upsamplers"):
        return _join(f"output_blocks.{last}.{1 if level in plain_up_blocks else 2}", rest)
    return None


def _resnet_layer(path: str) -> str:
    """A diffusers path whose layer inside a residual block still has its LDM name -> the diffusers path."""
    match = re.fullmatch(r"(.+\.resnets\.\d+)\.(.+)", path)
    return f"{match[1]}.{_swap(match[2], _UNET_RESNET) or match[2]}" if match else path


def _join(root: str, rest: str | None) -> str | None:
    return f"{root}.{rest}" if rest else None


# -------------------------------------------------------------------------------- VAE


def vae_to_diffusers(ldm_path: str, levels: int = 4) -> str | None:
    """LDM path (without ``first_stage_model.``) -> diffusers path; None for a path of another pattern.

    Attention weights are (C, C, 1, 1) in LDM files and (C, C) in diffusers: shapes are the caller's business.
    """
    if re.match(r"(post_)?quant_conv\b", ldm_path):
        return ldm_path
    match = re.fullmatch(r"(encoder|decoder)\.(.+)", ldm_path)
    if match is None:
        return None
    side, path = match[1], match[2]
    if re.match(r"conv_(in|out)\b", path):
        return ldm_path
    if swapped := _swap(path, _VAE_ENDS):
        return f"{side}.{_vae_layer(swapped)}"
    block = re.fullmatch(r"(down|up)\.(\d+)\.(?:block\.(\d+)|(downsample|upsample))(?:\.(.+))?", path)
    if block is None or (block[1] == "down") != (side == "encoder"):
        return None
    # LDM numbers the decoder's levels by size, diffusers in the order they run.
    level = int(block[2]) if side == "encoder" else levels - 1 - int(block[2])
    if level < 0:
        return None
    child = f"resnets.{block[3]}" if block[3] else f"{block[4]}rs.0"
    root = f"{block[1]}_blocks.{level}.{child}"
    return f"{side}.{_vae_layer(f'{root}.{block[5]}' if block[5] else root)}"


def vae_to_ldm(path: str, levels: int = 4) -> str | None:
    """Diffusers path -> LDM path without prefix; None for a path of another pattern.

    Attention layers may have their older diffusers names (``query``, ``key``, ``value``, ``proj_attn``).
    """
    if re.match(r"(post_)?quant_conv\b|(encoder|decoder)\.conv_(in|out)\b", path):
        return path
    match = re.fullmatch(r"(encoder|decoder)\.(.+)", path)
    if match is None:
        return None
    side, inner = match[1], _vae_layer(match[2], back=True)
    if swapped := _swap(inner, _VAE_ENDS, back=True):
        return f"{side}.{swapped}"
    block = re.fullmatch(
        r"(down|up)_blocks\.(\d+)\.(?:resnets\.(\d+)|(downsample|upsample)rs\.0)(?:\.(.+))?", inner
    )
    if block is None or (block[1] == "down") != (side == "encoder"):
        return None
    level = int(block[2]) if side == "encoder" else levels - 1 - int(block[2])
    if level < 0:
        return None
    root = f"{side}.{block[1]}.{level}.{f'block.{block[3]}' if block[3] else block[4]}"
    return f"{root}.{block[5]}" if block[5] else root


_OLD_ATTENTION: _Pairs = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))


def _vae_layer(path: str, back: bool = False) -> str:
    """Rename the layer inside a residual or attention block; ``path`` begins with the diffusers block's."""
    match = re.fullmatch(r"(.+\.(resnets|attentions)\.\d+)\.(.+)", path)
    if match is None:
        return path
    pairs, rest = (_VAE_RESNET if match[2] == "resnets" else _VAE_ATTENTION), match[3]
    if back:
        rest = _swap(rest, _OLD_ATTENTION) or rest
    return f"{match[1]}.{_swap(rest, pairs, back) or rest}"


# -------------------------------------------------------------------------------- text encoders


def text_path(path: str) -> str:
    """A transformers path with ``text_model.`` in front, where old files and transformers 5 leave it out."""
    if path.startswith(("text_model.", "text_projection", "logit_scale")):
        return path
    return f"text_model.{path}"


def _openclip(key: str, shape: tuple[int, ...], part: str) -> tuple[Place, ...]:
    """Places of an OpenCLIP text encoder's tensor; ``key`` without the checkpoint's prefix."""
    rows = shape[0] if shape else 0
    layer = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", key)
    if layer:
        root = f"text_model.encoder.layers.{layer[1]}"
        if fused := re.fullmatch(r"attn\.in_proj_(weight|bias)", layer[2]):
            width = rows // 3
            return tuple(
                Place(part, f"{root}.self_attn.{name}_proj", fused[1], index * width, (index + 1) * width)
                for index, name in enumerate("qkv")
            )
        path = _swap(layer[2], _OPENCLIP_LAYER)
        return (whole_place(part, f"{root}.{path}", rows),) if path else ()
    if key == "text_projection":  # applied as x @ P, a linear layer as x @ W.T
        return (Place(part, "text_projection", "weight", 0, rows, transposed=True),)
    if key == "text_projection.weight":
        return (whole_place(part, key, rows),)
    renamed = _OPENCLIP_ENDS.get(key)
    return (whole_place(part, renamed, rows),) if renamed else ()


_OPENCLIP_ENDS: Mapping[str, str] = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}


class OpenClipKey(NamedTuple):
    """A tensor of an OpenCLIP text encoder (without the checkpoint's prefix), and where a layer's tensor stands in it:
    ``third`` 0, 1, 2 of the fused q, k, v, None for the whole; ``transposed`` as in :class:`Place`.
    """

    key: str
    third: int | None = None
    transposed: bool = False


def openclip_key(tensor: str) -> OpenClipKey | None:
    """Where OpenCLIP keeps a text encoder's tensor of that canonical name; None for names of another pattern."""
    if tensor == "text_projection.weight":
        return OpenClipKey("text_projection", transposed=True)
    for key, canonical in _OPENCLIP_ENDS.items():
        if tensor == canonical:
            return OpenClipKey(key)
    layer = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.+)", tensor)
    if layer is None:
        return None
    root = f"transformer.resblocks.{layer[1]}"
    if fused := re.fullmatch(r"self_attn\.([qkv])_proj\.(weight|bias)", layer[2]):
        return OpenClipKey(f"{root}.attn.in_proj_{fused[2]}", "qkv".index(fused[1]))
    path = _swap(layer[2], _OPENCLIP_LAYER, back=True)
    return OpenClipKey(f"{root}.{path}") if path else None


# -------------------------------------------------------------------------------- checkpoints


def find_layout(checkpoint_keys: Iterable[str]) -> Layout:
    """Read the layout of an LDM checkpoint from its keys; the usual one for what they do not show."""
    samplers: list[int] = []
    inputs: list[int] = []
    levels: list[int] = []
    for key in checkpoint_keys:
        if match := re.search(r"(?:^|\.)input_blocks\.(\d+)\.0\.(op\b)?", key):
            (samplers if match[2] else inputs).append(int(match[1]))
        elif match := re.search(r"(?:^|\.)encoder\.down\.(\d+)\.", key):
            levels.append(int(match[1]))
    layers = min(samplers) - 1 if samplers else max(inputs, default=0)
    # A damaged file may have its first sampler where no level can end.
    return Layout(
        layers if layers > 0 else STANDARD.layers_per_block,
        max(levels) + 1 if levels else STANDARD.vae_levels,
    )


# -------------------------------------------------------------------------------- the family's names


# Words of LDM, SGM and OpenCLIP paths that no path of diffusers or transformers has. A dot may be escaped in a pattern.
_CHECKPOINT_WORDS = re.compile(
    r"(in|out)put_blocks|middle_block|time_embed(?!ding)|label_emb|(in|out|emb)_layers|skip_connection|resblocks"
    r"|in_proj|mlp\W{1,3}c_(fc|proj)|diffusion_model|cond_stage_model|conditioner|^\^?out(\\\.|\[\.\]|\.)\d"
)


class LdmNames(Names):
    """The names of Stable Diffusion's three families, which differ by their facts alone.

    SDXL's UNet goes by LDM names in LoRA files, those of SD 1.x and 2.x by diffusers'.
    """

    classes: ClassVar[Mapping[str, str]] = {
        "UNetModel": "UNet2DConditionModel",
        "SpatialTransformer": "Transformer2DModel",
        "ResBlock": "ResnetBlock2D",
        "Downsample": "Downsample2D",
        "Upsample": "Upsample2D",
        "CrossAttention": "Attention",
        "MemoryEfficientCrossAttention": "Attention",
        "ResidualAttentionBlock": "CLIPEncoderLayer",
        "MultiheadAttention": "CLIPAttention",
        "CLIPSdpaAttention": "CLIPAttention",
    }

    def canonical(self, part: str, path: str) -> str:
        return path if part in ("unet", "vae") else text_path(path)

    def in_checkpoint(self, family: Family, part: str, path: str, layers_per_block: int) -> str | None:
        if part == "unet":
            return unet_to_ldm(path, layers_per_block, family.plain_up_blocks)
        if not family.checkpoint_prefixes[part].endswith(".model."):
            return path
        place = openclip_key(f"{path}.weight")
        return place and re.sub(r"[._]weight$", "", place.key)

    def speaks_checkpoint(self, pattern: str) -> bool:
        return _CHECKPOINT_WORDS.search(pattern) is not None

    def locate(self, family: Family, key: str, shape: tuple[int, ...], layout: Layout) -> tuple[Place, ...]:
        """As the base class says. UNet and VAE keys may lack their prefix, as in files of one part."""
        rows = shape[0] if shape else 0
        for part in family.text_parts:
            prefix = family.checkpoint_prefixes[part]
            if key.startswith(prefix):
                bare = key.removeprefix(prefix)
                if prefix.endswith(".model."):
                    return _openclip(bare, shape, part)
                return () if bare.endswith("position_ids") else (whole_place(part, text_path(bare), rows),)
        unet = unet_to_diffusers(key.removeprefix(UNET_PREFIX), layout.layers_per_block)
        if unet:
            return (whole_place("unet", unet, rows),)
        vae = vae_to_diffusers(key.removeprefix(VAE_PREFIX), layout.vae_levels)
        return (whole_place("vae", vae, rows),) if vae else ()

    def kohya(self, family: Family, part: str, path: str, layers_per_block: int) -> str:
        if part == "unet" and family.ldm_names:
            path = unet_to_ldm(path, layers_per_block, family.plain_up_blocks) or path
        return flat_name(family.lora_prefixes[part], path)

    def others(
        self, family: Family, part: str, path: str, layers_per_block: int, checkpoint_path: str | None
    ) -> tuple[str, ...]:
        """The UNet's other naming, then PEFT's, then those of kohya's OFT."""
        if part == "unet":
            ldm = checkpoint_path or unet_to_ldm(path, layers_per_block, family.plain_up_blocks)
            names = [name for name in (ldm, path) if name]
            # kohya's networks.oft has a prefix of its own.
            lora, oft = ([flat_name(prefix, name) for name in names] for prefix in ("lora_unet", "oft_unet"))
            return (*lora, f"unet.{path}", *oft)
        # Of a single text encoder, and of SDXL's first, which some files name as SD 1.x's.
        other = "lora_te1" if len(family.text_parts) == 1 else "lora_te"
        own = (flat_name(other, path),) if part == "te1" else ()
        return (*own, f"text_encoder{'_2' if part == 'te2' else ''}.{path}")
