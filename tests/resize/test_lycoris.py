"""Files of every algorithm: what is linear becomes plain LoRA of the same change, the rest is copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.delta import Array, dense_delta
from lorapipe_engine.files.tensorfile import TensorFile, open_tensors, write_tensors
from lorapipe_engine.networks.describe import Network, describe_network

NETWORKS = sorted((Path(__file__).parents[1] / "data/networks").glob("*.safetensors"))
COPIED = [path for path in NETWORKS if any(word in path.stem for word in ("oft", "ia3", "glora", "norm"))]
RESIZED = [path for path in NETWORKS if path not in COPIED]


def strip(path: Path, folder: Path) -> Path:
    """The network alone, as a real file has it."""
    with open_tensors(path) as file:
        kept = {key: file.read(key) for key in file.tensors if key.startswith(("lora_unet_", "oft_unet_"))}
    target = folder / path.name
    write_tensors(target, kept, {"ss_network_module": "lycoris.kohya", "ss_network_args": '{"algo": "x"}'})
    return target


def bases(path: Path) -> dict[str, Array]:
    with open_tensors(path) as file:
        return {key: file.read(key) for key in file.tensors if key.startswith("base.")}


def change(file: TensorFile, network: Network, name: str, weight: Array) -> tuple[Array, Array | None]:
    tensors = {suffix: file.read(key) for suffix, key in network.modules[name].keys.items()}
    found = dense_delta(tensors, weight, name=name)
    assert found.weight is not None
    return found.weight, found.bias


@pytest.mark.parametrize("path", RESIZED, ids=lambda path: path.stem)
def test_linear_algorithms_keep_their_change(path: Path, tmp_path: Path, resize: Any) -> None:
    source, output = strip(path, tmp_path), tmp_path / "out.safetensors"
    done = resize(source, "-o", output, "--new-rank", 500, "--new-conv-rank", 500, "--precision", "fp32")
    assert done.code == 0, done.err
    base = bases(path)
    with open_tensors(source) as old, open_tensors(output) as new:
        before, after = describe_network(old), describe_network(new)
        assert set(before.modules) == set(after.modules)
        for name, module in after.modules.items():
            assert module.algorithm == "lora"
            weight = base[f"base.{name.removeprefix('lora_unet_')}.weight"]
            for was, now in zip(
                change(old, before, name, weight), change(new, after, name, weight), strict=True
            ):
                assert (was is None) == (now is None)
                if was is not None and now is not None:
                    assert np.max(np.abs(was - now)) <= 3e-6 * np.max(np.abs(was))
            kernel = (3, 3) if "conv3x3" in name else ()
            assert module.kernel == kernel
            assert module.dora == ("dora" in path.stem)


@pytest.mark.parametrize("path", COPIED, ids=lambda path: path.stem)
def test_what_depends_on_the_base_is_copied_bit_for_bit(path: Path, tmp_path: Path, resize: Any) -> None:
    source, output = strip(path, tmp_path), tmp_path / "out.safetensors"
    done = resize(source, "-o", output, "--new-rank", 1, "--precision", "bf16")
    assert done.code == 0, done.err
    assert "no low-rank form" in done.err
    with open_tensors(source) as old, open_tensors(output) as new:
        assert set(old.tensors) == set(new.tensors)
        for key in old.tensors:
            assert old.tensors[key].dtype == new.tensors[key].dtype
            assert bytes(old.raw(key)) == bytes(new.raw(key))


@pytest.mark.parametrize("stem", ["loha", "lokr_factor", "full"])
def test_other_algorithms_become_plain_lora(stem: str, tmp_path: Path, resize: Any) -> None:
    path = next(path for path in RESIZED if path.stem == stem)
    output = tmp_path / "out.safetensors"
    done = resize(strip(path, tmp_path), "-o", output, "--new-rank", 3, "--new-conv-rank", 2)
    assert "are now plain LoRA" in done.err
    with open_tensors(output) as file:
        network = describe_network(file)
    assert network.algorithm == "locon"
    assert network.metadata["ss_network_module"] == "networks.lora"
    assert network.metadata["ss_network_args"] == '{"conv_dim": "2", "conv_alpha": "3.0"}' or stem != "full"
    assert {module.rank for name, module in network.modules.items() if "linear" in name} == {3}
    assert {module.rank for name, module in network.modules.items() if "conv3x3" in name} == {2}
    suffixes = {key.rpartition("lora_")[2] for key in network.modules["lora_unet_linear"].keys.values()}
    assert {"up.weight", "down.weight"} <= suffixes


def test_peft_names_and_their_missing_alphas_stay(tmp_path: Path, resize: Any) -> None:
    rng = np.random.default_rng(0)
    source, output = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    stem = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{stem}.lora_A.weight": rng.standard_normal((6, 20)).astype(np.float32)}
    write_tensors(
        source, tensors | {f"{stem}.lora_B.weight": rng.standard_normal((12, 6)).astype(np.float32)}
    )
    assert resize(source, "-o", output, "--new-rank", 2).code == 0
    with open_tensors(output) as file:
        assert {name: info.shape for name, info in file.tensors.items()} == {
            f"{stem}.lora_A.weight": (2, 20),
            f"{stem}.lora_B.weight": (12, 2),
        }


def test_scales_in_diffusers_metadata_go_into_the_factors(tmp_path: Path, resize: Any) -> None:
    rng = np.random.default_rng(0)
    source, output = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    stems = {"unet.down_blocks.0.attentions.0.proj_in": 0.5, "unet.mid_block.attentions.0.proj_out": 3.0}
    tensors = {}
    for stem in stems:
        tensors[f"{stem}.lora_A.weight"] = rng.standard_normal((4, 20)).astype(np.float32)
        tensors[f"{stem}.lora_B.weight"] = rng.standard_normal((12, 4)).astype(np.float32)
    facts = {"unet.r": 4, "unet.lora_alpha": 2, "unet.alpha_pattern": {"proj_out": 12}}
    write_tensors(source, tensors, {"lora_adapter_metadata": json.dumps(facts)})
    assert resize(source, "-o", output, "--new-rank", 4).code == 0
    with open_tensors(output) as file:
        assert "lora_adapter_metadata" not in file.metadata
        for stem, scale in stems.items():
            found = file.read(f"{stem}.lora_B.weight") @ file.read(f"{stem}.lora_A.weight")
            expected = tensors[f"{stem}.lora_B.weight"] @ tensors[f"{stem}.lora_A.weight"]
            assert np.allclose(found, scale * expected, atol=1e-5)


@pytest.mark.parametrize(
    "facts", ["nonsense", "[]", '{"unet.r": 0, "unet.lora_alpha": 1}', '{"unet.r": "x"}']
)
def test_broken_scales_are_one_line(facts: str, tmp_path: Path, resize: Any) -> None:
    source = tmp_path / "in.safetensors"
    stem = "unet.mid_block.attentions.0.proj_out"
    tensors = {f"{stem}.lora_A.weight": np.ones((2, 3)), f"{stem}.lora_B.weight": np.ones((3, 2))}
    write_tensors(source, tensors, {"lora_adapter_metadata": facts})
    done = resize(source, "-o", tmp_path / "out.safetensors", "--new-rank", 4)
    assert done.code == 2
    assert "lora_adapter_metadata cannot be understood" in done.err
    assert done.err.count("\n") == 1


def test_a_dead_module_adds_no_second_zero_tensor(tmp_path: Path, resize: Any) -> None:
    """The guide counts tensors that hold a zero; resizing must not turn one of them into two."""
    rng = np.random.default_rng(1)
    source, output = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    down = rng.standard_normal((4, 9)).astype(np.float32)
    write_tensors(
        source, {"lora_te_x.lora_up.weight": np.zeros((8, 4), np.float32), "lora_te_x.lora_down.weight": down}
    )
    assert "1 dead" in resize(source, "-o", output, "--new-rank", 2).err
    with open_tensors(output) as file:
        assert not file.read("lora_te_x.lora_up.weight").any()
        assert file.read("lora_te_x.lora_down.weight").all()
        assert file.tensors["lora_te_x.lora_down.weight"].shape == (1, 9)
    assert resize(source, "-o", output, "--new-rank", 2, "--drop-zero", "--force").code == 0
    with open_tensors(output) as file:
        assert not file.tensors
