"""Bases of the published architectures with random weights, as diffusers folders in half precision.

    PYTHONPATH=tests python -m support.full_bases sd15 FOLDER

Weights are of the published shapes and mean nothing. On disk SD 1.5 takes 2 GB, SD 2.1 2.6 GB, SDXL 7 GB.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from support import tiny

SDXL_UNET = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
}
OPENCLIP_H = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
}
OPENCLIP_BIGG = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
    "projection_dim": 1280,
}
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd21": {
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": SDXL_UNET,
}
TEXTS: dict[str, tuple[dict[str, Any], ...]] = {
    "sd15": (CLIP_L,),
    "sd21": (OPENCLIP_H,),
    "sdxl": (CLIP_L, OPENCLIP_BIGG),
}
VOCABULARY = 49_408


def save_full(name: str, folder: Path) -> Path:
    """Write ``sd15``, ``sd21`` or ``sdxl`` into a folder, one part after another; returns it."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    with in_half():
        UNet2DConditionModel(**UNETS[name]).save_pretrained(folder / "unet")
        for index, settings in enumerate(TEXTS[name]):
            place = "text_encoder" if index == 0 else "text_encoder_2"
            text_encoder(settings).save_pretrained(folder / place)
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            scaling_factor=0.13025 if name == "sdxl" else 0.18215,
        ).save_pretrained(folder / "vae")
    tiny.write_tokenizer(folder / "tokenizer", VOCABULARY)
    (folder / "model_index.json").write_text(json.dumps({}))
    return folder


def text_encoder(settings: dict[str, Any]) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    marks = {"bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1, "pad_token_id": VOCABULARY - 1}
    config = CLIPTextConfig(vocab_size=VOCABULARY, **marks, **settings)
    kind = CLIPTextModelWithProjection if "projection_dim" in settings else CLIPTextModel
    return kind(config).half()


@contextmanager
def in_half() -> Iterator[None]:
    """New modules are made in half precision, so that SDXL's need 7 GB and not 14."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float16)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


if __name__ == "__main__":
    print(save_full(sys.argv[1], Path(sys.argv[2])))
