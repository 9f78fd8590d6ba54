"""Every program's spelling of a network gives the same change, in files that the programs wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lorapipe_engine.delta import dense_delta
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.networks.describe import describe_network
from lorapipe_engine.networks.kohya_names import kohya_name
from lorapipe_engine.networks.names import read_name
from lorapipe_engine.networks.read import network_path, read_module

DATA = Path(__file__).parents[1] / "data" / "formats"
PEOPLE = DATA.parent / "people"
# Programs that lost the strengths on the way: right up to one factor a module.
STRENGTH_LOST = ("trap_", "simpletuner_", "_named")
FC1 = "text_model.encoder.layers.0.mlp.fc1"
FOLDED = 5e-7  # strengths rounded into float32 factors
EXACT = 1e-12
FILES = [
    pytest.param(family, path, id=f"{family}-{path.stem}")
    for family in ("sd1", "sdxl")
    for path in sorted((DATA / family).iterdir())
    if path.stem != "expected_delta"
]


def expected(family: str) -> dict[str, NDArray[Any]]:
    with open_weights(DATA / family / "expected_delta.safetensors") as file:
        return {kohya_name(key, family): file.read(key) for key in file.tensors}


@pytest.mark.parametrize(("family", "path"), FILES)
def test_every_spelling_is_the_same_change(family: str, path: Path) -> None:
    wanted = expected(family)
    lost = any(mark in path.name for mark in STRENGTH_LOST)
    if family == "sdxl" and path.name == "peft_text_encoder_2_named.safetensors":
        pytest.skip("nothing in or beside the file tells which text encoder it is for")
    with open_weights(network_path(path)) as file:
        network = describe_network(file)
        assert not network.others
        for module in network.modules.values():
            target = wanted[kohya_name(module.name, family)]
            change = dense_delta(read_module(file, module), name=module.name, shape=target.shape).weight
            assert change is not None
            if lost:
                change = change * (np.vdot(change, target) / np.vdot(change, change))
            apart = np.linalg.norm(change - target) / np.linalg.norm(target)
            assert apart < (FOLDED if lost or (module.alpha is None and module.scale is None) else EXACT), (
                module.name
            )
    assert network.scale_unknown == ("_named" in path.name)


def test_every_layer_is_there() -> None:
    for family, path in (param.values for param in FILES):
        with open_weights(network_path(path)) as file:
            names = {kohya_name(name, str(family)) for name in describe_network(file).modules}
        whole = expected(str(family)).keys()
        partly = any(mark in path.name for mark in ("0_17", "adapter", "unet", "peft_"))
        assert names <= whole or "_2_named" in path.name
        assert partly or names == whole, path


@pytest.mark.parametrize(
    "folder", sorted(path for path in (DATA / "variants").iterdir() if path.is_dir()), ids=str
)
def test_peft_adapters_change_what_peft_merges(folder: Path) -> None:
    with open_weights(DATA / "variants/base.safetensors") as file:
        base = {key: file.read(key).astype(np.float64) for key in file.tensors}
    with open_weights(folder / "merged_float64.safetensors") as file:
        merged = {key: file.read(key) for key in file.tensors}
    layers = {
        kohya_name(key.removesuffix(".weight"), "sd1"): key for key in merged if key.endswith(".weight")
    }
    for name in ("", "as_lycoris.safetensors"):
        with open_weights(network_path(folder / name)) as file:
            for module in describe_network(file).modules.values():
                key = layers[kohya_name(module.name, "sd1")]
                change = dense_delta(read_module(file, module), weight=base[key], name=module.name).weight
                target = merged[key] - base[key]
                assert change is not None
                assert np.linalg.norm(change - target) < 2e-6 * np.linalg.norm(target), module.name


def test_the_adapters_folder_is_a_way_to_name_it(tmp_path: Path) -> None:
    assert network_path(PEOPLE / "peft_adapter").name == "adapter_model.safetensors"
    with pytest.raises(InputError, match="is a folder without adapter_model"):
        network_path(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"fan_in_fan_out": True}, "fan_in_fan_out = true is not supported"),
        ({"bias": "all"}, 'bias = "all" is not supported'),
        ({"modules_to_save": ["x"]}, "modules_to_save"),
        ({"peft_type": "OFT"}, "adapters of type OFT are not known here"),
        ({"r": 5}, "gives down_blocks.0.attentions.0.proj_in rank 5, but its tensors have rank 4"),
        ({"r": "many"}, "cannot be understood"),
        ({"lora_alpha": float("nan")}, "cannot be understood"),
        ({"rank_pattern": {"(": 4}}, "cannot be understood"),
        ({"rank_pattern": [1]}, "cannot be understood"),
    ],
)
def test_configurations_that_mean_something_else(change: dict[str, Any], text: str, tmp_path: Path) -> None:
    folder = PEOPLE / "peft_adapter"
    facts = json.loads((folder / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(facts | change))
    (tmp_path / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    with open_weights(network_path(tmp_path)) as file, pytest.raises(InputError) as stop:
        describe_network(file)
    assert text in str(stop.value)
    assert "adapter_config.json" in str(stop.value)


@pytest.mark.parametrize(
    ("name", "module", "suffix"),
    [
        ("lora_te_encoder_layers_0_mlp_fc1.alpha", "lora_te_text_model_encoder_layers_0_mlp_fc1", "alpha"),
        ("lycoris_conv_in.lora_up.weight", "lycoris_unet_conv_in", "lora_up.weight"),
        ("unet.conv_in.lora_A.my.adapter.weight", "unet.conv_in", "lora_down.weight"),
        ("unet.conv_in.lora_A", "unet.conv_in", "lora_down.weight"),
        (
            "clip_g.text_model.encoder.layers.0.mlp.fc1.alpha",
            "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
            "alpha",
        ),
        (
            "unet.input_blocks.4.1.proj_in.lora_down.weight",
            "unet.down_blocks.1.attentions.0.proj_in",
            "lora_down.weight",
        ),
        ("diffusion_model.out.2.lora_B.weight", "unet.conv_out", "lora_up.weight"),
        ("unet.x.to_q.magnitude", "unet.x.to_q", "dora_scale"),
        ("base_model.model.conv_in.lora_B.default.bias", "unet.conv_in", "lora_up.bias"),
        ("base_model.model.conv_in.hada_w1_a.default", "unet.conv_in", "hada_w1_a"),
        (
            "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.up.weight",
            "text_encoder.text_model.encoder.layers.0.self_attn.out_proj",
            "lora_up.weight",
        ),
    ],
)
def test_spellings(name: str, module: str, suffix: str) -> None:
    known = read_name(name)
    assert known is not None
    assert (known.module, known.suffix) == (module, suffix)
