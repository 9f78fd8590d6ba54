"""Kinds of files that programs have written: read right, or refused in one line with the file's name and the module's.

Right values are computed here, from the numbers that each test writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lorapipe_engine.files.tensorfile import encode, open_tensors, write_tensors
from support.commands import run

PEOPLE = Path(__file__).parents[1] / "data" / "people"
SD1, XL = PEOPLE / "sd1_base.safetensors", PEOPLE / "sdxl_base.safetensors"
PATH = "down_blocks.0.attentions.0.transformer_blocks.0"
TO_Q, TO_OUT = f"{PATH}.attn1.to_q", f"{PATH}.attn1.to_out.0"
CONV = "down_blocks.0.resnets.0.conv1"
LDM = "model.diffusion_model.input_blocks.1"
IN_BASE = {
    TO_Q: f"{LDM}.1.transformer_blocks.0.attn1.to_q.weight",
    TO_OUT: f"{LDM}.1.transformer_blocks.0.attn1.to_out.0.weight",
    CONV: f"{LDM}.0.in_layers.2.weight",
}
Array = NDArray[Any]
Arrays = dict[str, Array]


def kohya(path: str) -> str:
    return f"lora_unet_{path.replace('.', '_')}"


def numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def module(name: str, tensors: Mapping[str, Array]) -> Arrays:
    return {f"{name}.{suffix}": np.asarray(tensor) for suffix, tensor in tensors.items()}


def lora(
    rows: int = 16, columns: int = 16, rank: int = 2, alpha: float | None = None, seed: int = 0
) -> Arrays:
    found: Arrays = {
        "lora_down.weight": numbers(rank, columns, seed=seed),
        "lora_up.weight": numbers(rows, rank, seed=seed),
    }
    return found if alpha is None else found | {"alpha": np.float32(alpha)}


def change(tensors: Mapping[str, Array]) -> Array:
    up, down = (tensors[f"lora_{side}.weight"].astype(np.float64) for side in ("up", "down"))
    result: Array = up @ down * float(tensors.get("alpha", np.float32(len(down)))) / len(down)
    return result


def save(path: Path, tensors: Mapping[str, Any], metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    write_tensors(path, tensors, metadata)
    return path


def read(path: Path) -> Arrays:
    with open_tensors(path) as file:
        return {key: file.read(key).astype(np.float64) for key in file.tensors}


def refused(path: Path, words: tuple[object, ...], *told: str, tool: str = "lora-merge") -> None:
    """One line with these words and the file's name, nothing written."""
    output = path.parent / "out.safetensors"
    done = run(tool, *words, "-o", output)
    assert done.returncode in (1, 2), (words, done.stdout, done.stderr)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for text in (*told, path.name):
        assert text in done.stderr
    assert not output.exists()


def writers(path: Path, base: Path = SD1) -> list[tuple[str, tuple[object, ...]]]:
    """Every command line that makes a file of a network."""
    return [
        ("lora-merge", (base, path)),
        ("lora-merge", ("--networks", path, path)),
        ("lora-convert", (path, "--to", "kohya")),
        ("lora-resize", (path, "--new-rank", 1)),
        ("lora-extract", (path, base, "--dim", 1)),
        ("lora-inspect", ("delta", path, "--base", base)),
    ]


def moved(path: Path, output: Path, base: Path = SD1) -> Arrays:
    """W' - W of a merge into a base, of the tensors that differ."""
    done = run("lora-merge", base, path, "--save-precision", "fp32", "-o", output)
    assert done.returncode == 0, done.stderr
    before, after = read(base), read(output)
    return {key: after[key] - before[key] for key in after if not np.array_equal(after[key], before[key])}


# -------------------------------------------------------------------------------- one file, two models


XL_NAME = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"
OLD_NAME = kohya(TO_Q)
MIXED = {
    "blocks": ((XL_NAME, lora()), (OLD_NAME, lora()), "Stable Diffusion XL", "Stable Diffusion 1.x or 2.x"),
    "text encoder": (
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1", lora()),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", lora()),
        "Stable Diffusion XL",
        "Stable Diffusion 1.x or 2.x",
    ),
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


def test_layers_that_are_not_known_keep_their_names(tmp_path: Path) -> None:
    """AnimateDiff's: a flat name would be found by nobody."""
    name = "unet.down_blocks.0.motion_modules.0.temporal_transformer.proj_in"
    ends = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
    path = save(tmp_path / "m.safetensors", module(name, {ends[s]: t for s, t in lora().items()}))
    refused(path, (path, "--dim", 1), name, "its layer is not known", tool="lora-extract")
    done = run("lora-merge", "--networks", path, path, "-o", tmp_path / "o.safetensors")
    assert done.returncode == 0, done.stderr
    assert "m.safetensors: 1 modules are named like no layer of Stable Diffusion 1.x" in done.stderr
    assert set(read(tmp_path / "o.safetensors")) == {f"{name}.lora_A.weight", f"{name}.lora_B.weight"}


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
    sides = (wide["lora_up.weight"][:, :, 0, 0], wide["lora_mid.weight"], wide["lora_down.weight"][:, :, 0, 0])
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
