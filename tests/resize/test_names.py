"""``lora-resize --to kohya``: a file in anybody's names comes out in the names and shapes that the web UIs read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lorapipe_engine.delta import dense_delta
from lorapipe_engine.files.dtypes import encode
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.tensorfile import write_tensors
from lorapipe_engine.networks.describe import describe_network
from lorapipe_engine.networks.layers import layer_of
from lorapipe_engine.networks.read import read_module

DATA = Path(__file__).parents[1] / "data"
FORMATS, PEOPLE = DATA / "formats", DATA / "people"
WHOLE = ("--new-rank", 16, "--save-precision", "fp32")
SCHEMES = (
    *("comfyui_lorasave", "diffusers_0_17", "diffusers_0_20", "diffusers_save_lora_weights", "kohya"),
    *("onetrainer_comfy", "onetrainer_diffusers", "onetrainer_omi", "peft_text_encoder", "peft_unet"),
)


def changes(path: Path) -> dict[tuple[str, str], NDArray[Any]]:
    """The change of every layer of a file, shaped as the layer."""
    found: dict[tuple[str, str], NDArray[Any]] = {}
    with open_weights(path) as file:
        for module in describe_network(file).modules.values():
            layer, delta = layer_of(module.name), dense_delta(read_module(file, module), name=module.name)
            assert layer is not None
            assert delta.weight is not None
            found[layer] = delta.weight.reshape(len(delta.weight), -1)
    return found


def tensors(path: Path) -> dict[str, NDArray[Any]]:
    with open_weights(path) as file:
        return {key: file.read(key) for key in file.tensors}


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_any_programs_names(family: str, scheme: str, resize: Any, tmp_path: Path) -> None:
    """Names and shapes are those of the same network by sd-scripts, and each layer changes as it did."""
    folder, output = FORMATS / family, tmp_path / "out.safetensors"
    source = folder / f"{scheme}.safetensors"
    source = source if source.exists() else folder / scheme / "adapter_model.safetensors"
    done = resize(source, "-o", output, *WHOLE, "--to", "kohya")
    assert done.code == 0, done.err
    assert "dotted" not in done.err
    before, after = changes(source), changes(output)
    assert before.keys() == after.keys()
    for layer, change in before.items():
        assert np.linalg.norm(after[layer] - change) <= 1e-5 * np.linalg.norm(change), layer
    alone = scheme == "peft_text_encoder"  # of which SD 1.x and SDXL have the same
    assert ("lora-convert --family sdxl names it for SDXL" in done.err) == alone
    ours, theirs = shapes(output), shapes(folder / "kohya.safetensors")
    if not (alone and family == "sdxl"):
        assert {key: theirs.get(key) for key in ours} == ours
    with open_weights(output) as file:
        told = file.metadata
    assert told["ss_network_module"] == "networks.lora"
    assert told["ss_base_model_version"] == ("sd_v1" if alone or family == "sd1" else "sdxl_base_v1-0")


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors but for their ranks."""
    found = {}
    for key, value in tensors(path).items():
        rank = 0 if key.endswith("lora_down.weight") else 1
        found[key] = tuple(size for axis, size in enumerate(value.shape) if axis != rank)
    return found


def test_without_it_a_note_names_it(resize: Any, tmp_path: Path) -> None:
    source = FORMATS / "sd1/diffusers_save_lora_weights.safetensors"
    done = resize(source, "-o", tmp_path / "out.safetensors", "--new-rank", 2)
    assert done.code == 0
    assert "A1111 does not read, nor ComfyUI most of; --to kohya writes those that they read" in done.err
    assert all("." in name for name in changes_by_name(tmp_path / "out.safetensors"))


def changes_by_name(path: Path) -> list[str]:
    with open_weights(path) as file:
        return list(describe_network(file).modules)


def test_a_folder_of_networks(resize: Any, tmp_path: Path) -> None:
    words = [FORMATS / "sd1" / f"{name}.safetensors" for name in ("onetrainer_omi", "diffusers_0_20")]
    done = resize(*words, "-o", tmp_path / "small", "--target-size", "24KB", "--to", "kohya")
    assert done.code == 0, done.err
    for line in done.lines:
        assert Path(line).stat().st_size <= 24_000
        assert all(name.startswith("lora_") for name in changes_by_name(Path(line)))


def test_magnitudes_go_by_outputs_as_they_did(resize: Any, tmp_path: Path) -> None:
    """PEFT's (1, o, 1, 1) would be magnitudes by inputs under kohya's names."""
    source, output = PEOPLE / "dora_peft_conv_square.safetensors", tmp_path / "out.safetensors"
    done = resize(source, "-o", output, *WHOLE, "--to", "kohya")
    assert done.code == 0, done.err
    assert "DoRA by outputs" in done.err
    new = tensors(output)
    for key, value in tensors(source).items():
        if key.endswith("lora_magnitude_vector"):
            layer = key.removesuffix(".lora_magnitude_vector").replace(".", "_")
            magnitudes = new[f"lora_{layer}.dora_scale"]
            assert magnitudes.shape == (value.size, 1, 1, 1)
            assert np.array_equal(magnitudes.reshape(-1), value.reshape(-1))


def test_biases_of_factors_are_biases_of_layers(resize: Any, tmp_path: Path) -> None:
    source = FORMATS / "variants/peft_lora_bias/adapter_model.safetensors"
    output = tmp_path / "out.safetensors"
    done = resize(source, "-o", output, *WHOLE, "--to", "kohya")
    assert done.code == 0, done.err
    with open_weights(source) as old, open_weights(output) as new:
        pairs = zip(
            describe_network(old).modules.values(), describe_network(new).modules.values(), strict=True
        )
        for before, after in pairs:
            one, two = read_module(old, before), read_module(new, after)
            assert np.allclose(one["diff_b"], two["diff_b"], rtol=1e-6), before.name
            assert after.keys["diff_b"] == f"{after.name}.diff_b"


@pytest.mark.parametrize(("family", "ndim"), [("sd1", 4), ("sd2", 2), ("sdxl", 2)])
@pytest.mark.parametrize("stored", [2, 4])
@pytest.mark.parametrize("words", [(), ("--to", "kohya")])
def test_layers_around_attention_are_shaped_as_the_bases(
    family: str, ndim: int, stored: int, words: tuple[str, ...], resize: Any, tmp_path: Path
) -> None:
    """SD 2.x and XL have linear layers there, SD 1.x convolutions, whatever a trainer made of them."""
    width = {"sd1": 768, "sd2": 1024, "sdxl": 2048}[family]
    block = "lora_unet_" + ("input_blocks_4_1" if family == "sdxl" else "down_blocks_0_attentions_0")
    numbers, ones = np.random.default_rng(0), (1,) * (stored - 2)
    net = {
        f"{block}_proj_in.lora_down.weight": numbers.standard_normal((2, 8, *ones)),
        f"{block}_proj_in.lora_up.weight": numbers.standard_normal((8, 2, *ones)),
        f"{block}_transformer_blocks_0_attn2_to_k.lora_down.weight": numbers.standard_normal((2, width)),
        f"{block}_transformer_blocks_0_attn2_to_k.lora_up.weight": numbers.standard_normal((8, 2)),
    }
    source, output = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_tensors(source, {key: encode(value, "F32") for key, value in net.items()})
    assert resize(source, "-o", output, "--new-rank", 2, *words).code == 0
    shapes = {key: value.ndim for key, value in tensors(output).items() if "_proj_in.lora" in key}
    assert set(shapes.values()) == {ndim}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("unet.down_blocks.0.attentions.0.strange", "no layer of Stable Diffusion 1.x"),
        (
            "transformer.single_transformer_blocks.0.attn.to_q",
            "is for Flux.1, whose names are not known here",
        ),
        ("lora_unet_foo", "no layer of Stable Diffusion 1.x"),
        (
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
            "names one layer twice",
        ),
    ],
)
def test_what_has_no_name_there_is_refused(name: str, text: str, resize: Any, tmp_path: Path) -> None:
    anchor = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    net = {f"{anchor}.lora_A.weight": np.ones((2, 768)), f"{anchor}.lora_B.weight": np.ones((8, 2))}
    ends = ("lora_down", "lora_up") if name.startswith("lora_") else ("lora_A", "lora_B")
    net |= {f"{name}.{ends[0]}.weight": np.ones((2, 768)), f"{name}.{ends[1]}.weight": np.ones((8, 2))}
    source = tmp_path / "in.safetensors"
    write_tensors(source, {key: encode(value, "F32") for key, value in net.items()})
    done = resize(source, "-o", tmp_path / "out.safetensors", "--to", "kohya")
    assert done.code == 2
    assert text in done.err
    assert done.err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]
