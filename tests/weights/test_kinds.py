"""Kinds of network files that programs have written: of one model, with their names and strengths read right.

Right values are computed here, from the numbers that each test writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.commands import run
from support.kinds import (
    IN_BASE,
    PATH,
    SD1,
    TO_OUT,
    TO_Q,
    XL,
    Arrays,
    change,
    kohya,
    lora,
    module,
    moved,
    numbers,
    read,
    refused,
    save,
    writers,
)

# -------------------------------------------------------------------------------- one file, two models


XL_NAME = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
OLD_NAME = kohya(TO_Q)
MIXED = {
    "blocks": ((XL_NAME, lora()), (OLD_NAME, lora()), "Stable Diffusion XL", "Stable Diffusion 1.x or 2.x"),
    "widths": (
        (kohya(f"{PATH}.attn2.to_k"), lora(columns=768)),
        (kohya("up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"), lora(columns=1024)),
        "Stable Diffusion 1.x",
        "Stable Diffusion 2.x",
    ),
    "dots": (
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", lora()),
        ("unet.up_blocks.3.attentions.0.proj_in", lora()),
        "Stable Diffusion XL",
        "Stable Diffusion 1.x or 2.x",
    ),
}


@pytest.mark.parametrize("kind", MIXED)
def test_names_of_two_models(kind: str, tmp_path: Path) -> None:
    (one, first), (two, second), *titles = MIXED[kind]
    path = save(tmp_path / "mixed.safetensors", module(one, first) | module(two, second))
    for tool, words in writers(path):
        refused(path, words, "mixes names of", *titles, one, two, tool=tool)
    done = run("lora-inspect", "check", path)
    assert done.returncode == 1
    assert all(text in done.stdout for text in (*titles, one, two))
    for command in (("norms",), ("keys", "--modules"), ("ranks",), ("compat",)):
        done = run("lora-inspect", *command, path)
        assert "mixes names of" in done.stderr + done.stdout


def test_sdxl_with_the_text_encoder_of_sd1(tmp_path: Path) -> None:
    """ComfyUI reads these names as SDXL's first text encoder's, and so does every tool here, with a note."""
    own = lora(6, 6, alpha=1.0)
    name = "text_model_encoder_layers_0_self_attn_q_proj"
    tensors = module(f"lora_te_{name}", own) | module(f"lora_te2_{name}", lora(8, 8))
    path = save(tmp_path / "te.safetensors", tensors)
    for tool, words in writers(path, XL)[:-1]:
        output = tmp_path / "o.safetensors"
        done = run(tool, *words, "-o", output, "--force", "--save-precision", "fp32")
        assert done.returncode == 0, done.stderr
        assert f"1 module is named as SD 1.x's text encoder (lora_te_{name})" in done.stderr
    found = moved(path, tmp_path / "m.safetensors", XL)
    key = "conditioner.embedders.0.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"
    assert np.allclose(found[key], change(own), atol=1e-4)


def test_the_refiner_is_another_model(tmp_path: Path) -> None:
    """Its levels are SD 1.x's and its transformers SDXL's; its text states are 1280 wide."""
    name = kohya("down_blocks.1.attentions.0.transformer_blocks.3.attn2.to_k")
    tensors = module(name, lora(columns=1280)) | module(kohya("up_blocks.3.resnets.0.conv1"), lora())
    path = save(tmp_path / "refiner.safetensors", tensors)
    refused(path, (XL, path), "is for the SDXL refiner, the base is Stable Diffusion XL")
    refused(path, (path, "--to", "kohya"), "is for the SDXL refiner", tool="lora-convert")
    assert "the SDXL refiner" in run("lora-inspect", "check", path).stdout


def family_of(path: Path) -> str:
    done = run("lora-inspect", "keys", "--modules", "--json", path)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["family"])


@pytest.mark.parametrize(("width", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl")])
def test_widths_tell_the_model_for_any_algorithm(width: int, family: str, tmp_path: Path) -> None:
    name = kohya("mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    kinds: dict[str, Arrays] = {
        "loha": {
            **{f"hada_w{n}_a": numbers(16, 2, seed=n) for n in (1, 2)},
            **{f"hada_w{n}_b": numbers(2, width, seed=n) for n in (1, 2)},
        },
        "lokr": {
            "lokr_w1": numbers(2, 2),
            "lokr_w2_a": numbers(8, 1),
            "lokr_w2_b": numbers(1, width // 2),
        },
        "full": {"diff": numbers(16, width)},
    }
    for kind, tensors in kinds.items():
        assert family_of(save(tmp_path / f"{kind}.safetensors", module(name, tensors))) == family


def test_checkpoint_names_of_sd1(tmp_path: Path) -> None:
    """SDXL has no attention there, so these are not its names, whatever the custom."""
    tensors = lora(alpha=1.0)
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    path = save(tmp_path / "ldm.safetensors", module(name, tensors))
    assert family_of(path) == "sd1"
    other = save(tmp_path / "other.safetensors", module(kohya(TO_Q), lora(seed=1)))
    output = tmp_path / "sum.safetensors"
    done = run("lora-merge", "--networks", path, other, "--save-precision", "fp32", "-o", output)
    assert done.returncode == 0, done.stderr
    found = read(output)
    summed = {suffix: found[f"{kohya(TO_Q)}.{suffix}"] for suffix in lora(alpha=1.0)}
    assert np.allclose(change(summed), change(tensors) + change(lora(seed=1)), atol=1e-5)


def test_networks_of_two_strange_models_are_not_added(tmp_path: Path) -> None:
    one = save(tmp_path / "f.safetensors", module("lora_unet_double_blocks_0_img_attn_qkv", lora()))
    two = save(tmp_path / "s.safetensors", module("lora_unet_joint_blocks_0_x_block_attn_qkv", lora()))
    refused(one, ("--networks", one, two), "is for Flux.1", "s.safetensors is for Stable Diffusion 3")


def test_family_has_to_be_possible(tmp_path: Path) -> None:
    path = save(tmp_path / "one.safetensors", module(kohya(TO_Q), lora()))
    words = (path, "--to", "kohya", "--family")
    refused(path, (*words, "sdxl"), "is for Stable Diffusion 1.x; --family sdxl", tool="lora-convert")
    done = run("lora-convert", *words, "sd2", "-o", tmp_path / "o.safetensors")
    assert done.returncode == 0, done.stderr


# -------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    [
        f"module.unet.{TO_Q}",
        f"unet._orig_mod.{TO_Q}",
        f"unet.base_model.model.{TO_Q}",
        f"lora_unet__orig_mod_{TO_Q.replace('.', '_')}",
        f"lora_unet_{TO_Q}",
        f"lora_unet.{TO_Q}",
        f"lycoris_{TO_Q.replace('.', '_')}",
    ],
)
def test_names_with_more_in_them(name: str, tmp_path: Path) -> None:
    tensors = lora(alpha=3.0)
    path = save(tmp_path / "n.safetensors", module(name, tensors))
    found = moved(path, tmp_path / "o.safetensors")
    assert list(found) == [IN_BASE[TO_Q]]
    assert np.allclose(found[IN_BASE[TO_Q]], change(tensors), atol=1e-4)


def test_the_text_projection_of_a_peft_folder(tmp_path: Path) -> None:
    """It is the second text encoder's, whatever else the folder tells, and comes back as PEFT's."""
    tensors = lora(8, 8)
    ends = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    names = ("text_projection", "text_model.encoder.layers.0.mlp.fc2")
    sizes = {"text_projection": tensors, names[1]: lora(8, 32)}
    path = save(
        tmp_path / "adapter" / "adapter_model.safetensors",
        {f"base_model.model.{n}.{ends[s]}": t for n in names for s, t in sizes[n].items()},
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}
    (path.parent / "adapter_config.json").write_text(json.dumps(config))
    found = moved(path.parent, tmp_path / "o.safetensors", XL)
    assert np.allclose(
        found["conditioner.embedders.1.model.text_projection"], 3 * change(tensors).T, atol=1e-4
    )
    done = run("lora-convert", path.parent, "--to", "kohya", "-o", tmp_path / "k.safetensors", "--verify")
    assert done.returncode == 0, done.stderr
    written = read(tmp_path / "k.safetensors")
    assert {name.partition(".")[0] for name in written} == {
        "lora_te2_text_projection",
        "lora_te2_text_model_encoder_layers_0_mlp_fc2",
    }
    done = run("lora-convert", tmp_path / "k.safetensors", "--to", "peft", "-o", tmp_path / "p", "--verify")
    assert done.returncode == 0, done.stderr


def test_layers_that_are_not_known(tmp_path: Path) -> None:
    """AnimateDiff's: no LoRA of Stable Diffusion's has a name for them."""
    name = "unet.down_blocks.0.motion_modules.0.temporal_transformer.proj_in"
    ends = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    path = save(tmp_path / "m.safetensors", module(name, {ends[s]: t for s, t in lora().items()}))
    refused(path, (path, "--dim", 1), name, "its layer is not known", tool="lora-extract")
    done = run("lora-merge", "--networks", path, path, "-o", tmp_path / "o.safetensors")
    assert done.returncode == 0, done.stderr
    assert "m.safetensors: 1 module is named like no layer of Stable Diffusion 1.x" in done.stderr


# -------------------------------------------------------------------------------- strengths


def test_alphas_of_both_signs(tmp_path: Path) -> None:
    """One alpha serves all modules, so the sign goes into the factors."""
    modules = {TO_Q: lora(alpha=-4.0), TO_OUT: lora(alpha=2.0, seed=1)}
    tensors = {key: t for path, own in modules.items() for key, t in module(kohya(path), own).items()}
    path, output = save(tmp_path / "n.safetensors", tensors), tmp_path / "o.safetensors"
    for more in ((), ("--to", "kohya"), ("--balance", "up"), ("--keep-alphas",)):
        done = run(
            "lora-resize", path, "--new-rank", 2, "--save-precision", "fp32", "-o", output, "--force", *more
        )
        assert done.returncode == 0, done.stderr
        found = read(output)
        for layer, own in modules.items():
            new = {suffix: found[f"{kohya(layer)}.{suffix}"] for suffix in own}
            assert np.allclose(change(new), change(own), atol=1e-5)


def test_alphas_without_factors_are_told(tmp_path: Path) -> None:
    """As when somebody has taken the text encoder out of a file."""
    own, lost = lora(alpha=1.0), "lora_te_text_model_encoder_layers_0_mlp_fc1"
    path = save(tmp_path / "n.safetensors", module(kohya(TO_Q), own) | {f"{lost}.alpha": np.float32(1)})
    for tool, words in (("lora-resize", ("--new-rank", 2)), ("lora-extract", ("--dim", 2))):
        output = tmp_path / f"{tool}.safetensors"
        done = run(tool, path, *words, "--save-precision", "fp32", "-o", output)
        assert done.returncode == 0, done.stderr
        assert "note: " in done.stderr
        assert "without factors" in done.stderr
        found = read(output)
        new = {suffix: found[f"{kohya(TO_Q)}.{suffix}"] for suffix in own}
        assert np.allclose(change(new), change(own), atol=1e-5)


PEFT_NAME = f"base_model.model.{TO_Q}"
FACTORS = {
    f"{PEFT_NAME}.lora_A.weight": lora()["lora_down.weight"],
    f"{PEFT_NAME}.lora_B.weight": lora()["lora_up.weight"],
}
MAGNITUDES = {f"{PEFT_NAME}.lora_magnitude_vector": np.ones(16, np.float32)}


@pytest.mark.parametrize(
    ("more", "tensors", "text"),
    [
        ({"init_lora_weights": "pissa"}, {}, 'init_lora_weights = "pissa": its factors belong to a base'),
        ({"init_lora_weights": "pissa_niter_16"}, {}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "olora"}, {}, "a base that PEFT changed"),
        ({"init_lora_weights": "loftq"}, {}, "a base that PEFT changed"),
        ({"use_qalora": True}, {}, "use_qalora = true is not supported"),
        ({"use_dora": True}, {}, f"says use_dora = true, but {TO_Q} has no magnitudes"),
        ({"use_dora": False}, MAGNITUDES, f"says use_dora = false, but {TO_Q} has magnitudes"),
        ({"lora_alpha": True}, {}, "true is no number"),
        ({"r": 4}, {}, f"gives {TO_Q} rank 4, but its tensors have rank 2"),
    ],
)
def test_configurations_that_contradict(
    more: dict[str, Any], tensors: Arrays, text: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "adapter" / "adapter_model.safetensors", FACTORS | tensors)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | more
    (path.parent / "adapter_config.json").write_text(json.dumps(config))
    refused(path, (SD1, path), text, "adapter_config.json")
    refused(path, (path, "--new-rank", 1), text, tool="lora-resize")


@pytest.mark.slow
@pytest.mark.parametrize("init", [True, False, "gaussian", "eva", "orthogonal"])
def test_other_beginnings_of_factors_change_nothing(init: object, tmp_path: Path) -> None:
    path = save(tmp_path / "adapter" / "adapter_model.safetensors", FACTORS)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": True, "init_lora_weights": init}
    (path.parent / "adapter_config.json").write_text(json.dumps(config))
    found = moved(path, tmp_path / "o.safetensors")
    assert np.allclose(found[IN_BASE[TO_Q]], 4 / np.sqrt(2) * change(lora()), atol=1e-4)


def test_an_alpha_against_the_header(tmp_path: Path) -> None:
    """One module has its alpha in the file, another strength in the header, as the other module has."""
    tensors = {}
    for layer in (TO_Q, TO_OUT):
        tensors[f"unet.{layer}.lora_A.weight"] = numbers(2, 16)
        tensors[f"unet.{layer}.lora_B.weight"] = numbers(16, 2)
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 4})}
    for alpha, sound in ((4, True), (1, False)):
        alphas = {f"unet.{TO_Q}.alpha": np.float32(alpha)}
        path = save(tmp_path / f"{alpha}.safetensors", tensors | alphas, header)
        if sound:
            found = moved(path, tmp_path / "o.safetensors")
            assert np.allclose(found[IN_BASE[TO_Q]], found[IN_BASE[TO_OUT]], atol=1e-4)
        else:
            refused(path, (SD1, path), f"gives {TO_Q} the strength 2, but its alpha is 1 at rank 2")
