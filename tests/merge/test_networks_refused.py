"""Networks that cannot be added up, and options that make no sense: one clear line, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.delta import Array
from lorapipe_engine.errors import ConfigError, InputError, LoraError, OutputError
from lorapipe_engine.files.tensorfile import open_tensors, write_tensors

NETWORKS = Path(__file__).resolve().parents[1] / "data/networks"
FC1 = "lora_te_text_model_encoder_layers_0_mlp_fc1"
TO_Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"

Add = Callable[..., int]


def lora(name: str, out: int, inputs: int) -> dict[str, Array]:
    """The tensors of a module of rank 4 without alpha."""
    rng = np.random.default_rng(0)
    return {
        f"{name}.lora_up.weight": rng.standard_normal((out, 4)).astype(np.float32),
        f"{name}.lora_down.weight": rng.standard_normal((4, inputs)).astype(np.float32),
    }


def write(path: Path, tensors: Mapping[str, Array]) -> Path:
    write_tensors(path, tensors)
    return path


def read(path: Path) -> dict[str, Array]:
    with open_tensors(path) as file:
        return {name: file.read(name) for name in file.tensors}


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A good one: a.safetensors, for SD 1.x."""
    return write(tmp_path / "a.safetensors", lora(TO_Q, 24, 16))


def refused(kind: type[LoraError], text: str, run: Callable[[], object], folder: Path) -> None:
    """It raises, says why, and leaves nothing behind."""
    before = sorted(folder.iterdir())
    with pytest.raises(kind, match=text):
        run()
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("file", "told"),
    [("dora_out", "dora"), ("diag_oft", "oft"), ("boft", "boft"), ("ia3_in", "ia3"), ("glora", "glora")],
)
def test_what_depends_on_the_base_is_refused_by_name(file: str, told: str, add: Add, tmp_path: Path) -> None:
    tensors = read(NETWORKS / f"{file}.safetensors")
    own = {name: array for name, array in tensors.items() if name.startswith(("lora_unet_", "oft_unet_"))}
    write(tmp_path / "a.safetensors", own)
    text = rf"a.safetensors: \d {told} modules \((lora|oft)_unet_.*depends on the base model"
    refused(InputError, text, lambda: add({"a.safetensors": 1.0}), tmp_path)


def test_families_are_not_mixed(add: Add, network: Path, tmp_path: Path) -> None:
    del network
    sdxl = lora("lora_te2_text_model_encoder_layers_0_mlp_fc1", 8, 8)
    write(tmp_path / "xl.safetensors", sdxl)
    text = "a.safetensors is for Stable Diffusion 1.x.*xl.safetensors is for Stable Diffusion XL"
    both = {"a.safetensors": 1.0, "xl.safetensors": 1.0}
    refused(InputError, text, lambda: add(both), tmp_path)


def test_sizes_that_differ(add: Add, network: Path, tmp_path: Path) -> None:
    del network
    write(tmp_path / "c.safetensors", lora(TO_Q, 24, 20))
    both = {"a.safetensors": 1.0, "c.safetensors": 1.0}
    refused(InputError, f"{TO_Q} has different sizes.*24 x 16.*24 x 20", lambda: add(both), tmp_path)


def test_two_names_of_one_layer_in_one_file(add: Add, tmp_path: Path) -> None:
    twice = lora(FC1, 8, 8) | lora(FC1.replace("_te_", "_te1_"), 8, 8)
    write(tmp_path / "a.safetensors", twice | lora(TO_Q, 8, 8))
    refused(InputError, "names one layer twice", lambda: add({"a.safetensors": 1.0}), tmp_path)


def test_tensors_of_no_module(
    add: Add, network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unknown ones stop it, embeddings in the same file are told of."""
    del network
    tensors, extra = read(tmp_path / "a.safetensors"), np.ones(3, np.float32)
    write(tmp_path / "odd.safetensors", tensors | {f"{TO_Q}.lora_up.odd": extra})
    text = f"1 tensor belongs to no module that is known: {TO_Q}.lora_up.odd"
    refused(InputError, text, lambda: add({"odd.safetensors": 1.0}), tmp_path)
    write(tmp_path / "emb.safetensors", tensors | {"bundle_emb.word.string_to_param.*": extra})
    assert add({"emb.safetensors": 1.0}) == 0
    assert "its embeddings are left out: bundle_emb.word" in capsys.readouterr().err


def test_values_that_are_no_numbers(add: Add, tmp_path: Path) -> None:
    tensors = lora(TO_Q, 24, 16) | lora(FC1, 8, 8)
    tensors[f"{TO_Q}.lora_up.weight"][3, 2] = np.nan
    write(tmp_path / "a.safetensors", tensors)
    options = {"mode": "svd", "rank": 2}
    text = f"NaN or infinite values in {TO_Q}.lora_up.weight"
    refused(InputError, text, lambda: add({"a.safetensors": 1.0}, **options), tmp_path)
    assert add({"a.safetensors": 1.0}, allow_nonfinite=True, **options) == 0
    found = read(tmp_path / "sum.safetensors")
    assert np.isnan(found[f"{TO_Q}.lora_up.weight"]).sum() == 1
    assert found[f"{FC1}.lora_up.weight"].shape == (8, 2)


def test_values_that_fp16_cannot_hold(add: Add, tmp_path: Path) -> None:
    tensors = {name: array * np.float32(1e6) for name, array in lora(TO_Q, 24, 16).items()}
    write(tmp_path / "a.safetensors", tensors)
    options = {"save_precision": "fp16"}
    refused(InputError, "do not fit F16", lambda: add({"a.safetensors": 1.0}, **options), tmp_path)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"mode": "svd", "target_size": "9000", "dynamic_method": "sv_fro", "dynamic_param": 0.9},
            "leave out",
        ),
        ({"mode": "svd", "rank": 4, "dynamic_method": "sv_fro"}, "--dynamic-param is missing"),
        ({"mode": "svd", "target_size": "100"}, "even at rank 1"),
    ],
)
def test_options_that_do_not_go_together(
    options: dict[str, Any], text: str, add: Add, network: Path, tmp_path: Path
) -> None:
    del network
    refused(ConfigError, text, lambda: add({"a.safetensors": 1.0}, **options), tmp_path)


def test_nothing_to_add(add: Add, network: Path, tmp_path: Path) -> None:
    del network
    refused(ConfigError, "other than 0", lambda: add({"a.safetensors": 0.0}), tmp_path)


def test_old_files_stay(add: Add, network: Path, tmp_path: Path) -> None:
    del network
    (tmp_path / "sum.safetensors").write_text("mine")
    refused(OutputError, "--force", lambda: add({"a.safetensors": 1.0}, force=False), tmp_path)
    assert (tmp_path / "sum.safetensors").read_text() == "mine"
    same = "a.safetensors"
    refused(ConfigError, "is an input", lambda: add({same: 1.0}, same, force=False), tmp_path)
    refused(ConfigError, "is a folder", lambda: add({same: 1.0}, tmp_path), tmp_path)
    assert add({same: 2.0}, same) == 0
    refused(OutputError, "does not exist", lambda: add({same: 1.0}, "no/where.safetensors"), tmp_path)
