"""Names of one layer in all spellings become kohya's."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lorapipe_engine.models.keys import lora_names_of
from lorapipe_engine.networks.kohya_names import kohya_name

FAMILIES = {"sd15": "sd1", "sd21": "sd2", "sdxl": "sdxl"}
KEYMAP: dict[str, dict[str, Any]] = json.loads(
    gzip.decompress((Path(__file__).parents[1] / "data/keys/keymap.json.gz").read_bytes())
)


@pytest.mark.slow
@pytest.mark.parametrize("model", FAMILIES)
def test_every_name_of_every_layer_is_kohyas(model: str) -> None:
    family = FAMILIES[model]
    for expected, (key, start, stop) in KEYMAP[model].items():
        rows = stop if start == 0 else start + 3 * (stop - start)
        for name, place in lora_names_of(key, (rows, 8), family).items():
            found = kohya_name(name, family)
            if place.start == start:
                assert found == expected, name
            assert kohya_name(found, family) == found


@pytest.mark.parametrize(
    ("name", "family", "expected"),
    [
        (
            "lora_te1_text_model_encoder_layers_0_mlp_fc1",
            "sd1",
            "lora_te_text_model_encoder_layers_0_mlp_fc1",
        ),
        ("lora_te_encoder_layers_0_mlp_fc1", "sd2", "lora_te_text_model_encoder_layers_0_mlp_fc1"),
        (
            "lora_te_text_model_encoder_layers_0_mlp_fc1",
            "sdxl",
            "lora_te1_text_model_encoder_layers_0_mlp_fc1",
        ),
        ("lycoris_unet_mid_block_attentions_0_proj_in", "sd1", "lora_unet_mid_block_attentions_0_proj_in"),
        ("lora_unet_time_embedding_linear_1", "sdxl", "lora_unet_time_embed_0"),
        ("lora_unet_add_embedding_linear_2", "sdxl", "lora_unet_label_emb_0_2"),
        ("lora_unet_out_0", "sd1", "lora_unet_conv_norm_out"),
        ("lora_unet_no_such_module", "sd1", "lora_unet_no_such_module"),
        ("lora_unet_double_blocks_0_img_attn_qkv", None, "lora_unet_double_blocks_0_img_attn_qkv"),
    ],
)
def test_names_apart(name: str, family: str | None, expected: str) -> None:
    assert kohya_name(name, family) == expected
