"""``lora-convert``: the same change in every program's names, and there and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lorapipe_engine.delta import dense_delta
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.tensorfile import write_tensors
from lorapipe_engine.networks.describe import describe_network
from lorapipe_engine.networks.layers import layer_of
from lorapipe_engine.networks.read import network_path, read_module
from support.commands import run

DATA = Path(__file__).parents[1] / "data"
FORMATS = DATA / "formats"
SCHEMES = ("kohya", "diffusers", "diffusers-old", "peft", "comfy", "omi")
FOLDERS = ("unet", "text_encoder", "text_encoder_2")
TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
Arrays = dict[str, NDArray[Any]]


def changes(path: Path) -> dict[tuple[str, str], NDArray[Any]]:
    """The change of every layer of a file, or of PEFT's folders."""
    paths = [path / name for name in FOLDERS if (path / name).is_dir()] or [path]
    found = {}
    for one in paths:
        with open_weights(network_path(one)) as file:
            network = describe_network(file)
            assert not network.others
            for module in network.modules.values():
                layer = layer_of(module.name)
                assert layer is not None
                change = dense_delta(read_module(file, module), name=module.name).weight
                assert change is not None
                found[layer] = change.reshape(len(change), -1)
    return found


def same(one: Path, two: Path, tolerance: float) -> None:
    first, second = changes(one), changes(two)
    assert first.keys() == second.keys()
    for layer, change in first.items():
        assert np.linalg.norm(change - second[layer]) <= tolerance * np.linalg.norm(change), layer


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_there_and_back(family: str, scheme: str, tmp_path: Path) -> None:
    source = FORMATS / family / "kohya.safetensors"
    there, back = tmp_path / "there.safetensors", tmp_path / "back.safetensors"
    done = run("lora-convert", source, "--to", scheme, "-o", there, "--verify")
    assert done.returncode == 0, done.stderr
    assert "verified: the change of every module is the same" in done.stderr
    assert done.stdout.strip() == str(there)
    same(source, there, 1e-6)
    if scheme != "peft":
        assert run("lora-convert", there, "--to", "kohya", "-o", back, "--keep-alphas").returncode == 0
        same(source, back, 1e-6)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_names_are_those_that_the_programs_write(family: str, tmp_path: Path) -> None:
    """The names of the programs' own files, tensor by tensor."""
    own = {"comfy": "comfyui_lorasave", "omi": "onetrainer_omi", "diffusers": "onetrainer_diffusers"}
    for scheme, name in (own | {"diffusers-old": "diffusers_0_20"}).items():
        output = tmp_path / f"{scheme}.safetensors"
        assert (
            run(
                "lora-convert", FORMATS / family / "kohya.safetensors", "--to", scheme, "-o", output
            ).returncode
            == 0
        )
        with open_weights(output) as file, open_weights(FORMATS / family / f"{name}.safetensors") as theirs:
            ours = {key: info.shape for key, info in file.tensors.items() if not key.endswith(".alpha")}
            wanted = {key: info.shape for key, info in theirs.tensors.items() if not key.endswith(".alpha")}
        assert ours == wanted, scheme


def test_one_alpha_where_they_differ(tmp_path: Path) -> None:
    source, output = FORMATS / "sd1/kohya.safetensors", tmp_path / "o.safetensors"
    assert run("lora-convert", source, "--to", "kohya", "-o", output).returncode == 0
    with open_weights(output) as file:
        alphas = {float(file.read(key)) for key in file.tensors if key.endswith(".alpha")}
        assert file.metadata["ss_network_alpha"] == f"{next(iter(alphas)):g}"
        assert "lora_adapter_metadata" not in file.metadata
    assert len(alphas) == 1
    same(source, output, 1e-6)


def test_bytes_are_copied_where_nothing_is_folded(tmp_path: Path) -> None:
    source, output = FORMATS / "sd1/kohya.safetensors", tmp_path / "o.safetensors"
    assert run("lora-convert", source, "--to", "comfy", "-o", output).returncode == 0
    with open_weights(source) as file, open_weights(output) as result:
        before = sorted(bytes(file.raw(key)) for key in file.tensors if not key.endswith(".alpha"))
        assert before == sorted(
            bytes(result.raw(key)) for key in result.tensors if not key.endswith(".alpha")
        )


def network(tmp_path: Path, tensors: Arrays) -> Path:
    write_tensors(tmp_path / "in.safetensors", tensors)
    return tmp_path / "in.safetensors"


def numbers(*shape: int) -> NDArray[Any]:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def loha() -> Arrays:
    shapes = {"a": (8, 2), "b": (2, 8)}
    return {f"{TO_Q}.hada_w{n}_{side}": numbers(*shapes[side]) for n in (1, 2) for side in "ab"}


def lokr() -> Arrays:
    return {f"{TO_Q}.lokr_w1": numbers(2, 2), f"{TO_Q}.lokr_w2": numbers(4, 4)}


def plain() -> Arrays:
    return {f"{TO_Q}.lora_up.weight": numbers(8, 2), f"{TO_Q}.lora_down.weight": numbers(2, 8)}


@pytest.mark.parametrize("make", [loha, lokr])
def test_products_become_plain_factors_on_request(make: Callable[[], Arrays], tmp_path: Path) -> None:
    source, output = network(tmp_path, make()), tmp_path / "o.safetensors"
    done = run("lora-convert", source, "--to", "diffusers", "-o", output)
    assert done.returncode == 1
    assert "--to-lora makes plain factors of it" in done.stderr
    assert not output.exists()
    for scheme in ("diffusers", "kohya", "peft"):
        output = tmp_path / f"{scheme}.safetensors"
        done = run(
            "lora-convert", source, "--to", scheme, "--to-lora", "-o", output, "--verify", "--family", "sd1"
        )
        assert done.returncode == 0, done.stderr
        same(source, output, 2e-6)


@pytest.mark.parametrize("scheme", ["kohya", "comfy", "omi"])
def test_lycoris_is_kept_where_readers_know_it(scheme: str, tmp_path: Path) -> None:
    output = tmp_path / "o.safetensors"
    tensors = loha() | {f"{TO_Q}.alpha": np.float32(1.0)}
    source = network(tmp_path, {key: np.asarray(value) for key, value in tensors.items()})
    assert run("lora-convert", source, "--to", scheme, "-o", output, "--verify").returncode == 0
    with open_weights(output) as file:
        assert {module.algorithm for module in describe_network(file).modules.values()} == {"loha"}
    same(source, output, 1e-12)


@pytest.mark.parametrize(
    "folder",
    ["peft_loha", "peft_loha_effective_conv", "peft_lokr", "peft_lokr_both_effective", "peft_rslora"],
)
def test_pefts_own_products(folder: str, tmp_path: Path) -> None:
    source, output = FORMATS / "variants" / folder, tmp_path / "o.safetensors"
    done = run("lora-convert", source, "--to", "kohya", "-o", output, "--verify", "--keep-alphas")
    assert done.returncode == 0, done.stderr
    same(network_path(source), output, 1e-6)


@pytest.mark.parametrize(
    ("extra", "words", "text"),
    [
        ({f"{TO_Q}.diff_b": numbers(8)}, ["--to", "diffusers"], "diff_b has no form there"),
        ({"strange.tensor": numbers(3)}, ["--to", "kohya"], "strange.tensor: belongs to no module"),
        (
            {"lora_unet_no_layer.alpha": numbers(1), f"{TO_Q}.alpha": numbers(1)},
            ["--to", "kohya"],
            "has an alpha and no factors",
        ),
        (
            {
                "lora_unet_no_layer.lora_up.weight": numbers(4, 2),
                "lora_unet_no_layer.lora_down.weight": numbers(2, 4),
            },
            ["--to", "kohya"],
            "lora_unet_no_layer: is no layer of Stable Diffusion 1.x",
        ),
        (
            {
                "unet.down_blocks.0.attentions.0.to_kk.lora_A.weight": numbers(2, 8),
                "unet.down_blocks.0.attentions.0.to_kk.lora_B.weight": numbers(8, 2),
            },
            ["--to", "kohya"],
            "unet.down_blocks.0.attentions.0.to_kk: is no layer of Stable Diffusion 1.x",
        ),
        ({f"{TO_Q}.dora_scale": numbers(1, 8)}, ["--to", "peft"], "DoRA by inputs has no form there"),
        ({f"{TO_Q}.dora_scale": numbers(8, 1)}, ["--to", "diffusers-old"], "DoRA has no form there"),
    ],
)
def test_what_a_scheme_cannot_say(extra: Arrays, words: list[str], text: str, tmp_path: Path) -> None:
    source, output = network(tmp_path, plain() | extra), tmp_path / "o.safetensors"
    done = run("lora-convert", source, *words, "-o", output, "--family", "sd1")
    assert done.returncode == 1
    assert text in done.stderr
    assert "nothing was written" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors"]


@pytest.mark.slow
def test_magnitudes_of_pefts_convolutions_go_by_outputs(tmp_path: Path) -> None:
    """PEFT's (1, o, 1, 1) are kohya's (o, 1, 1, 1), and not magnitudes by inputs, which kohya has in PEFT's shape."""
    source, there, back = (DATA / "people/dora_peft_conv_square.safetensors"), tmp_path / "k", tmp_path / "d"
    for one, scheme, two in ((source, "kohya", there), (there, "diffusers", back)):
        assert run("lora-convert", one, "--to", scheme, "-o", two, "--verify").returncode == 0
    with open_weights(source) as old, open_weights(there) as new, open_weights(back) as again:
        keys = [key for key in old.tensors if key.endswith("magnitude_vector")]
        assert keys
        for key in keys:
            flat = f"lora_{key.removesuffix('.lora_magnitude_vector').replace('.', '_')}.dora_scale"
            assert new.tensors[flat].shape == (16, 1, 1, 1)
            assert np.array_equal(new.read(flat).reshape(-1), old.read(key).reshape(-1))
            assert np.array_equal(again.read(key), old.read(key))
    base = DATA / "people/sd1_base.safetensors"
    for name, network in (("one", source), ("two", there)):
        words = [base, network, "--save-precision", "fp32", "-o", tmp_path / f"{name}.safetensors"]
        assert run("lora-merge", *words).returncode == 0
    with open_weights(tmp_path / "one.safetensors") as one, open_weights(tmp_path / "two.safetensors") as two:
        assert all(np.allclose(one.read(key), two.read(key), atol=1e-6) for key in one.tensors)


def test_left_out_on_request(tmp_path: Path) -> None:
    source, output = network(tmp_path, plain() | {"strange.tensor": numbers(3)}), tmp_path / "o.safetensors"
    done = run("lora-convert", source, "--to", "kohya", "--skip", "-o", output, "--json")
    assert done.returncode == 0
    assert "left out: strange.tensor" in done.stderr
    assert json.loads(done.stdout)["skipped"] == ["strange.tensor"]


def test_values_that_do_not_fit(tmp_path: Path) -> None:
    tensors = plain()
    tensors[f"{TO_Q}.lora_up.weight"] *= 1e6
    done = run(
        "lora-convert",
        network(tmp_path, tensors),
        "--to",
        "kohya",
        "--precision",
        "fp16",
        "-o",
        tmp_path / "o.safetensors",
    )
    assert done.returncode == 2
    assert "too large for F16 in lora_up.weight" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.safetensors"]


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    source, output = network(tmp_path, plain()), tmp_path / "o.safetensors"
    output.write_text("mine")
    for scheme in ("kohya", "peft"):
        done = run("lora-convert", source, "--to", scheme, "-o", output)
        assert done.returncode == 1
        assert "exists already" in done.stderr
    assert output.read_text() == "mine"
    assert run("lora-convert", source, "--to", "kohya", "-n", "-o", output).returncode == 0
    assert output.read_text() == "mine"


def test_every_tools_factors_are_shaped_as_the_layers(tmp_path: Path) -> None:
    """LoHa keeps convolutions flattened; made into plain factors they are what sd-scripts and diffusers load."""
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    around = "lora_unet_down_blocks_0_attentions_0_proj_in"
    width = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    for family, context, ones in (("sd1", 768, (1, 1)), ("sd2", 1024, ())):
        net: Arrays = {
            f"{width}.lora_up.weight": numbers(8, 2),
            f"{width}.lora_down.weight": numbers(2, context),
        }
        for name, columns in ((conv, 72), (around, 8)):
            net |= {f"{name}.hada_w{n}_a": numbers(8, 2) for n in (1, 2)}
            net |= {f"{name}.hada_w{n}_b": numbers(2, columns) for n in (1, 2)}
        source = tmp_path / f"{family}.safetensors"
        write_tensors(source, net)
        commands: list[tuple[str, list[object]]] = [
            ("lora-convert", [source, "--to", "kohya", "--to-lora"]),
            ("lora-merge", ["--networks", source]),
            ("lora-resize", [source, "--new-rank", 4]),
            ("lora-extract", [source]),
        ]
        for command, words in commands:
            output = tmp_path / f"{family}-{command}.safetensors"
            assert run(command, *words, "-o", output).returncode == 0
            with open_weights(output) as file:
                assert file.tensors[f"{conv}.lora_down.weight"].shape[1:] == (8, 3, 3), command
                assert len(file.tensors[f"{conv}.lora_up.weight"].shape) == 4, command
                assert file.tensors[f"{around}.lora_down.weight"].shape[1:] == (8, *ones), command


def test_products_have_an_alpha_which_lycoris_asks_for(tmp_path: Path) -> None:
    for name, make, alpha in (("loha", loha, 2.0), ("lokr", lokr, 1.0)):
        output = tmp_path / f"{name}-out.safetensors"
        words = [network(tmp_path, make()), "--to", "kohya", "--family", "sd1", "--verify", "--force"]
        assert run("lora-convert", *words, "-o", output).returncode == 0
        with open_weights(output) as file:
            assert float(file.read(f"{TO_Q}.alpha")) == alpha
        (tmp_path / "in.safetensors").unlink()
