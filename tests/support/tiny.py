"""Tiny random models of every family, with the architecture quirks of the real ones, and their tokenizer."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lorapipe_engine.models import keys
from lorapipe_engine.models.families import get_family

VOCABULARY = 600
WORDS = ("cat", "dog", "red", "hair", "smile", "night", "1girl", "solo")


def write_tokenizer(folder: Path, size: int = VOCABULARY) -> Path:
    """A byte-pair vocabulary of ``size`` ids (bytes, a few words, fillers) in CLIP's file format."""
    folder.mkdir(parents=True, exist_ok=True)
    marks = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    tokens = [*marks, *(f"{mark}</w>" for mark in marks)]
    merges: list[str] = []
    for word in WORDS:
        have = word[0]
        for index in range(1, len(word)):
            after = word[index] + ("</w>" if index == len(word) - 1 else "")
            pair, have = f"{have} {after}", have + after
            if have not in tokens:
                merges.append(pair)
                tokens.append(have)
    tokens += [f"filler{index}" for index in range(size - 2 - len(tokens))]
    ids = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    assert len(ids) == size
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Tiny:
    """The modules of a tiny base model."""

    family: str
    unet: Any
    vae: Any
    text_encoders: tuple[Any, ...]


def build(family: str, *, linear: bool | None = None, seed: int = 0, layers: int = 1) -> Tiny:
    """Random modules of a family ("sd1", "sd2", "sdxl", or "demo": SD 1.x narrow, as the demo's base).

    ``linear``: whether the UNet's attention starts with a linear layer; None: as in the family's single
    files. ``layers``: of each UNet block (2 in the real ones).
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(seed)
    unet, vae, texts = RECIPES[family]
    unet = dict(unet)
    if linear is not None:
        unet["use_linear_projection"] = linear
    made = Tiny(
        "sd1" if family == "demo" else family,
        UNet2DConditionModel(layers_per_block=layers, norm_num_groups=32, **unet),
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(vae),
            up_block_types=("UpDecoderBlock2D",) * len(vae),
            block_out_channels=vae,
            layers_per_block=1,
            scaling_factor=0.13025 if family == "sdxl" else 0.18215,
        ),
        tuple(_text_encoder(**text) for text in texts),
    )
    for module in (made.unet, made.vae, *made.text_encoders):
        module.requires_grad_(False).eval()
        # Norms start as ones and zeros, which would hide a swap of two of them.
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return made


def _text_encoder(width: int, layers: int, activation: str, projection: int | None = None) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=width * 2,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        hidden_act=activation,
        projection_dim=projection or width,
        bos_token_id=VOCABULARY - 2,
        eos_token_id=VOCABULARY - 1,
        pad_token_id=VOCABULARY - 1,
    )
    return CLIPTextModel(config) if projection is None else CLIPTextModelWithProjection(config)


DOWN, ATTENTION_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
UP, ATTENTION_UP = "UpBlock2D", "CrossAttnUpBlock2D"
RECIPES: dict[str, Any] = {
    "sd1": (
        {
            "block_out_channels": (32, 64),
            "down_block_types": (ATTENTION_DOWN, DOWN),
            "up_block_types": (UP, ATTENTION_UP),
            "cross_attention_dim": 64,
            "attention_head_dim": 8,
        },
        (32, 32, 64),
        [{"width": 64, "layers": 3, "activation": "quick_gelu"}],
    ),
    "demo": (
        {
            "block_out_channels": (64, 128, 128),
            "down_block_types": (ATTENTION_DOWN, ATTENTION_DOWN, DOWN),
            "up_block_types": (UP, ATTENTION_UP, ATTENTION_UP),
            "cross_attention_dim": 128,
            "attention_head_dim": 8,
        },
        (32, 64, 64),
        [{"width": 128, "layers": 2, "activation": "quick_gelu"}],
    ),
    "sd2": (
        {
            "block_out_channels": (64, 128),
            "down_block_types": (ATTENTION_DOWN, DOWN),
            "up_block_types": (UP, ATTENTION_UP),
            "cross_attention_dim": 128,
            "attention_head_dim": (1, 2),
        },
        (32, 32, 64),
        [{"width": 128, "layers": 3, "activation": "gelu"}],
    ),
    "sdxl": (
        {
            "block_out_channels": (64, 128, 192),
            "down_block_types": (DOWN, ATTENTION_DOWN, ATTENTION_DOWN),
            "up_block_types": (ATTENTION_UP, ATTENTION_UP, UP),
            "cross_attention_dim": 64 + 128,
            "attention_head_dim": (1, 2, 3),
            "transformer_layers_per_block": (1, 1, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 32,
            "projection_class_embeddings_input_dim": 96 + 6 * 32,
        },
        (32, 32, 64),
        [
            {"width": 64, "layers": 3, "activation": "quick_gelu"},
            {"width": 128, "layers": 4, "activation": "gelu", "projection": 96},
        ],
    ),
}

# ------------------------------------------------------------------------------------------------- files


def checkpoint_tensors(tiny: Tiny) -> dict[str, Any]:
    """The tensors under the names of a single-file checkpoint, with what such files hold besides."""
    plain = get_family(tiny.family).plain_up_blocks
    found: dict[str, Any] = {"model_ema.decay": torch.tensor(0.9), "alphas_cumprod": torch.ones(10)}
    for name, tensor in tiny.unet.state_dict().items():
        found[f"model.diffusion_model.{keys.unet_to_ldm(name, 1, plain)}"] = tensor
    levels = len(tiny.vae.config.block_out_channels)
    for name, tensor in tiny.vae.state_dict().items():
        shape = (*tensor.shape, 1, 1) if ".attentions." in name and tensor.dim() == 2 else tensor.shape
        found[f"first_stage_model.{keys.vae_to_ldm(name, levels)}"] = tensor.reshape(shape)
    for encoder, prefix in zip(tiny.text_encoders, TEXT_PREFIXES[tiny.family], strict=True):
        state = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
        if prefix.endswith(".model."):
            found.update({prefix + name: tensor for name, tensor in _openclip(state).items()})
        else:
            found.update({f"{prefix}text_model.{name}": tensor for name, tensor in state.items()})
            found[f"{prefix}text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if tiny.family == "sd2":  # the layer that files hold but nothing runs
        prefix = "cond_stage_model.model.transformer.resblocks."
        last = {name: tensor for name, tensor in found.items() if name.startswith(f"{prefix}2.")}
        found.update(
            {name.replace(f"{prefix}2.", f"{prefix}3."): tensor * 9 for name, tensor in last.items()}
        )
        found["cond_stage_model.model.text_projection"] = torch.ones(128, 128)
    return found


TEXT_PREFIXES = {
    "sd1": ("cond_stage_model.transformer.",),
    "sd2": ("cond_stage_model.model.",),
    "sdxl": ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."),
}


def _openclip(state: dict[str, Any]) -> dict[str, Any]:
    """A text encoder's tensors under OpenCLIP's names, written out apart from the engine's own table."""
    out = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
    }
    if "text_projection.weight" in state:
        out["text_projection"] = state["text_projection.weight"].T.contiguous()
    layers = {name.split(".")[2] for name in state if name.startswith("encoder.layers.")}
    pairs = (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("attn.out_proj", "self_attn.out_proj"))
    for layer in layers:
        old, new = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            fused = [state[f"{old}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            out[f"{new}.attn.in_proj_{kind}"] = torch.cat(fused)
            for there, here in (*pairs, ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):
                out[f"{new}.{there}.{kind}"] = state[f"{old}.{here}.{kind}"]
    return out


def save_checkpoint(
    tiny: Tiny, path: Path, metadata: dict[str, str] | None = None, steps: int = 7, **extra: Any
) -> Path:
    """Write one file with LDM names, .safetensors or .ckpt by its suffix, and a tokenizer beside it."""
    tensors = {name: tensor.contiguous().clone() for name, tensor in checkpoint_tensors(tiny).items()} | extra
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata)
    else:
        torch.save({"state_dict": tensors, "global_step": steps}, path)
    write_tokenizer(path.parent / "tokenizer")
    return path


def save_folder(tiny: Tiny, path: Path, *, variant: str | None = None, shard: str = "5GB") -> Path:
    """Write a diffusers folder, as ``save_pretrained`` of a pipeline does."""
    settings = {"variant": variant, "max_shard_size": shard}
    tiny.unet.save_pretrained(path / "unet", **settings)
    tiny.vae.save_pretrained(path / "vae", variant=variant)
    for folder, encoder in zip(("text_encoder", "text_encoder_2"), tiny.text_encoders, strict=False):
        encoder.save_pretrained(path / folder, **settings)
    write_tokenizer(path / "tokenizer")
    (path / "model_index.json").write_text("{}")
    return path
