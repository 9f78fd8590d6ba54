"""Modules and files that nobody can use, refused in one line with the names of file and module; odd ones read right.

Right values are computed here, from the numbers that each test writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.files.tensorfile import encode, open_tensors
from support.commands import run
from support.kinds import (
    CONV,
    IN_BASE,
    SD1,
    TO_OUT,
    TO_Q,
    Arrays,
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

# -------------------------------------------------------------------------------- modules


HALF_GLORA = {"a2.weight": numbers(2, 16), "b1.weight": numbers(16, 2), "b2.weight": numbers(2, 16)}
OFT = {"oft_blocks": numbers(4, 4, 4) * 0.1}
ODD: dict[str, tuple[str, Arrays, str]] = {
    "half a GLoRA": (TO_Q, HALF_GLORA, "a1.weight is missing"),
    "LoKr without its first factor": (TO_Q, {"lokr_w2": numbers(4, 4)}, "lokr_w1_a is missing"),
    "LoHa of other ranks": (
        TO_Q,
        {f"hada_w{n}_{s}": numbers(*((16, n) if s == "a" else (2, 16))) for n in (1, 2) for s in "ab"},
        "do not fit each other",
    ),
    "OFT with magnitudes": (TO_Q, OFT | {"dora_scale": np.ones((16, 1))}, "dora_scale has no meaning on oft"),
    "one magnitude": (TO_Q, lora() | {"dora_scale": np.ones(1)}, "dora_scale (1,) does not fit"),
    "a kernel in up": (
        CONV,
        {"lora_down.weight": numbers(2, 16, 1, 1), "lora_up.weight": numbers(16, 2, 3, 3)},
        "do not fit each other",
    ),
    "an empty factor": (
        TO_Q,
        {"lora_down.weight": numbers(2, 0), "lora_up.weight": numbers(16, 2)},
        "lora_down.weight is empty",
    ),
    "a bias of two dimensions": (CONV, lora(16, 144) | {"diff_b": numbers(1, 16)}, "expected 1 dimension"),
    "A1111's strength": (TO_Q, lora() | {"scale": np.float32(0.5)}, "scale changes what its module does"),
    "LyCORIS' scalar": (TO_Q, lora() | {"scalar": np.float32(0.5)}, "scalar changes what its module does"),
    "AdaLoRA": (TO_Q, lora() | {"lora_E": numbers(2, 1)}, "lora_E changes what its module does"),
    "sparse bias": (TO_Q, lora() | {"bias_values": numbers(3)}, "bias_values changes what its module does"),
    "scaled numbers": (
        TO_Q,
        lora() | {"lora_up.weight_scale": np.float32(0.1)},
        "keeps scaled numbers of 8 bits",
    ),
    "two spellings": (TO_Q, lora() | {"lora_A.weight": numbers(2, 16)}, "has one tensor twice"),
}


@pytest.mark.parametrize("kind", ODD)
def test_modules_that_nobody_can_use(kind: str, tmp_path: Path) -> None:
    layer, tensors, text = ODD[kind]
    sound = module(kohya(TO_OUT), lora(alpha=1.0))
    path = save(tmp_path / "odd.safetensors", sound | module(kohya(layer), tensors))
    for tool, words in writers(path):
        told = (text,) if tool != "lora-merge" or "--networks" not in words else ()
        refused(path, words, *told, kohya(layer) if "scaled" not in text else "", tool=tool)
    done = run("lora-inspect", "check", path)
    assert done.returncode == 1, done.stdout
    assert "odd.safetensors" in done.stdout


def test_numbers_of_8_bits_marked_in_the_header(tmp_path: Path) -> None:
    path = save(tmp_path / "n.safetensors", module(kohya(TO_Q), lora()), {"_quantization_metadata": "{}"})
    for tool, words in writers(path):
        refused(path, words, "keeps scaled numbers of 8 bits (_quantization_metadata)", tool=tool)


def test_both_sides_of_loha_may_be_stored_otherwise(tmp_path: Path) -> None:
    """One with a Tucker core, the other flattened."""
    tensors = {
        **{"hada_t1": numbers(2, 2, 3, 3), "hada_w1_a": numbers(2, 16), "hada_w1_b": numbers(2, 16, seed=1)},
        **{"hada_w2_a": numbers(16, 2, seed=2), "hada_w2_b": numbers(2, 144, seed=3)},
    }
    path = save(tmp_path / "l.safetensors", module(kohya(CONV), tensors))
    wide = {suffix: tensor.astype(np.float64) for suffix, tensor in tensors.items()}
    one = np.einsum("abkl,ao,bi->oikl", wide["hada_t1"], wide["hada_w1_a"], wide["hada_w1_b"])
    want = one * (wide["hada_w2_a"] @ wide["hada_w2_b"]).reshape(16, 16, 3, 3)
    found = moved(path, tmp_path / "o.safetensors")
    assert np.allclose(found[IN_BASE[CONV]], want, rtol=1e-4, atol=1e-3)


def test_a_core_of_two_sizes_in_pefts_folder(tmp_path: Path) -> None:
    """PEFT's rank is that of the factors without a core; the strength stays the file's."""
    tensors = {
        **{"lora_mid.weight": numbers(2, 3, 3, 3), "lora_down.weight": numbers(3, 16, 1, 1)},
        **{"lora_up.weight": numbers(16, 2, 1, 1), "alpha": np.float32(1)},
    }
    path = save(tmp_path / "n.safetensors", module(kohya(CONV), tensors))
    done = run("lora-convert", path, "--to", "peft", "-o", tmp_path / "p", "--verify")
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "p/unet/adapter_config.json").read_text())
    factors = read(tmp_path / "p/unet/adapter_model.safetensors")
    up, down = (factors[f"base_model.model.{CONV}.lora_{side}.weight"] for side in "BA")
    found = config["lora_alpha"] / config["r"] * np.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    wide = {suffix: tensor.astype(np.float64) for suffix, tensor in tensors.items()}
    sides = (
        wide["lora_up.weight"][:, :, 0, 0],
        wide["lora_mid.weight"],
        wide["lora_down.weight"][:, :, 0, 0],
    )
    assert np.allclose(found, np.einsum("or,rqkl,qi->oikl", *sides) / 3, atol=1e-4)


def test_ia3_has_no_dotted_name(tmp_path: Path) -> None:
    tensors = {"weight": numbers(16), "on_input": np.int64(1)}
    path = save(tmp_path / "n.safetensors", module(kohya(TO_Q), tensors))
    for scheme in ("comfy", "omi"):
        refused(path, (path, "--to", scheme), kohya(TO_Q), "ia3 has no form there", tool="lora-convert")


# -------------------------------------------------------------------------------- other files


@pytest.mark.parametrize(
    ("names", "title"),
    [
        (("emb_params",), "an embedding (textual inversion)"),
        (("clip_l", "clip_g"), "an embedding (textual inversion)"),
        (("control_model.input_blocks.0.0.weight",), "a ControlNet"),
        (("lora_controlnet", "input_blocks.1.1.proj_in.up"), "a Control-LoRA"),
        (("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"), "an IP-Adapter"),
        (("unet:0:up", "unet:0:down"), "a LoRA of cloneofsimo's first trainer"),
        (("lllite_unet_input_blocks_4_1_attn1_to_q.down.0.weight",), "a ControlNet-LLLite"),
    ],
)
def test_files_that_are_no_networks(names: tuple[str, ...], title: str, tmp_path: Path) -> None:
    path = save(tmp_path / "thing.safetensors", {name: numbers(2, 4) for name in names})
    refused(path, (SD1, path), f"this is {title}")
    refused(path, (path, "--new-rank", 1), f"this is {title}", tool="lora-resize")


def test_t5_is_no_text_encoder_of_stable_diffusion(tmp_path: Path) -> None:
    path = save(
        tmp_path / "t5.safetensors", module("lora_te3_encoder_block_0_layer_0_SelfAttention_q", lora())
    )
    refused(path, (SD1, path), "is for a model with a T5 text encoder, the base is Stable Diffusion 1.x")


# -------------------------------------------------------------------------------- which of several


def test_sums_name_the_files_that_do_not_go_together(tmp_path: Path) -> None:
    conv = {"lora_down.weight": numbers(2, 16, 3, 3), "lora_up.weight": numbers(16, 2, 1, 1)}
    odd = {"lora_down.weight": numbers(2, 36, 2, 2), "lora_up.weight": numbers(16, 2, 1, 1)}
    one = save(tmp_path / "one.safetensors", module(kohya(CONV), conv | {"diff_b": numbers(16)}))
    for name, tensors, text in (
        ("kernel", odd, "has different kernels: "),
        ("bias", conv | {"diff_b": numbers(8)}, "the bias of"),
        ("size", {"lora_down.weight": numbers(2, 9), "lora_up.weight": numbers(16, 2)}, "different sizes"),
        ("norm", {"diff": numbers(16)}, "is a matrix in one of"),
    ):
        two = save(tmp_path / f"{name}.safetensors", module(kohya(CONV), tensors))
        refused(one, ("--networks", one, two), text, two.name)
    large = {suffix: tensor * np.float32(1e5) for suffix, tensor in lora().items()}
    one, two = (save(tmp_path / f"{n}.safetensors", module(kohya(TO_Q), large)) for n in ("big", "bigger"))
    refused(one, ("--networks", one, two, "--save-precision", "fp16"), "do not fit F16", two.name)


def test_a_base_for_none_of_the_networks(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{n}.safetensors", module("lora_unet_nothing", lora())) for n in ("a", "b")]
    refused(paths[0], (SD1, *paths), "no module fits", "b.safetensors")


def test_models_name_the_one_with_the_odd_numbers(tmp_path: Path) -> None:
    with open_tensors(SD1) as file:
        tensors: dict[str, Any] = {key: encode(file.read(key), "F32") for key in file.tensors}
    key = IN_BASE[TO_Q]
    for name, value, text in (
        ("nan", np.full((16, 16), np.nan, np.float32), "has NaN or infinite values in"),
        ("shape", numbers(16, 8), "the models differ in"),
    ):
        path = save(tmp_path / f"{name}.safetensors", tensors | {key: value})
        refused(path, ("--models", SD1, path, "--ratio", 0.5), text, key)


# -------------------------------------------------------------------------------- beside a network, and folders


def test_tools_own_tensors_are_told(tmp_path: Path) -> None:
    """Slider tools add ``_aux.*``; merges go on without it."""
    path = save(tmp_path / "n.safetensors", module(kohya(TO_Q), lora()) | {"_aux.1f3a": numbers(3)})
    for words in ((SD1, path), ("--networks", path, path)):
        done = run("lora-merge", *words, "-o", tmp_path / "o.safetensors", "--force")
        assert done.returncode == 0, done.stderr
        assert "its tools' own tensors are left out: _aux.1f3a" in done.stderr


def test_folders_of_parts_and_of_one(tmp_path: Path) -> None:
    path = save(tmp_path / "n.safetensors", module(kohya(TO_Q), lora(alpha=4.0)))
    done = run("lora-convert", path, "--to", "peft", "-o", tmp_path / "parts")
    assert done.returncode == 0, done.stderr
    refused(
        path.with_name("parts"),
        (SD1, tmp_path / "parts"),
        f"holds a network for each part of a model; name one: {tmp_path / 'parts' / 'unet'}",
    )
    config = tmp_path / "parts" / "unet" / "adapter_config.json"
    config.write_text(config.read_text(encoding="utf-8"), encoding="utf-8-sig")  # as Windows' editors save
    found = moved(tmp_path / "parts" / "unet", tmp_path / "m.safetensors")
    up, down = (lora()[f"lora_{side}.weight"].astype(np.float64) for side in ("up", "down"))
    assert np.allclose(found[IN_BASE[TO_Q]], 2 * up @ down, atol=1e-4)
    output = tmp_path / "small.safetensors"
    done = run("lora-resize", tmp_path / "parts" / "unet", "--new-rank", 1, "-o", output)
    assert done.returncode == 0, done.stderr
    assert output.is_file()
    done = run("lora-resize", path, output, "--new-rank", 1, "-o", tmp_path / "two.safetensors")
    assert done.returncode == 2
    assert "two.safetensors: is one file, and here are 2 networks: give -o FOLDER/" in done.stderr


def test_a_network_is_no_base(tmp_path: Path) -> None:
    path = save(tmp_path / "n.safetensors", module(kohya(TO_Q), lora()))
    refused(path, ("delta", path, "--base", path), "is a network itself, no base", tool="lora-inspect")
    refused(path, (path, path), "not a checkpoint", "it goes on top of one")
