"""lora-inspect check: one verdict over everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.files.hashes import data_hash

ONE = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
TWO = "lora_te_text_model_encoder_layers_0_mlp_fc1"
METADATA = {"ss_network_dim": "4", "ss_network_alpha": "2.0", "ss_clip_skip": "1"}


def check(inspect: Any, path: Path, *words: str) -> dict[str, Any]:
    record: dict[str, Any] = inspect("check", path, "--json", *words).record
    return record


def test_sound_network(write: Any, inspect: Any) -> None:
    path = write("a.safetensors", [ONE, TWO], [], METADATA)
    record = check(inspect, path, "--strict")
    assert (record["problems"], record["notes"]) == ([], [])
    assert record["ranks"] == {"4": 2}
    assert record["parts"] == {"unet": 1, "te1": 1}
    assert record["data_sha256"] == data_hash(path)
    assert inspect("check", path).lines[-1].split() == ["verdict", "clean"]


def test_golden_network(data: Path, inspect: Any) -> None:
    record = check(inspect, data / "sample.safetensors")
    assert record["problems"] == ["2 modules unexpectedly dead", "1 NaN and 2 infinite values"]
    assert record["zeros"]["guide_count"] == 10
    assert "1 module without alpha, which then is the rank" in record["notes"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({f"{ONE}.lora_down.weight": np.ones((3, 24))}, "factors of different ranks"),
        ({f"{ONE}.lora_up.weight": np.ones(16)}, "factors of different ranks"),
        ({f"{ONE}.hada_w1_a": np.ones((3, 24))}, "lacks hada_w1_b"),
        ({f"{ONE}.on_input": np.ones(1)}, "tensors of no algorithm, or of several"),
        ({"lora_unet_conv_in.lora_up.weight": np.ones((4, 4))}, "lacks lora_down.weight"),
        ({f"{ONE}.lora_up.weight": np.zeros((16, 4))}, "1 module unexpectedly dead"),
        ({f"{ONE}.lora_up.weight": np.full((16, 4), np.inf)}, "64 infinite values"),
    ],
)
def test_problems(write: Any, inspect: Any, changes: dict[str, Any], problem: str) -> None:
    record = check(inspect, write("a.safetensors", [ONE, TWO], [], METADATA, changes=changes))
    assert len(record["problems"]) == 1
    assert problem in record["problems"][0]


@pytest.mark.parametrize(
    ("metadata", "note"),
    [
        (METADATA | {"ss_network_dim": "8"}, "ss_network_dim is 8, but no module has that rank"),
        (METADATA | {"ss_network_alpha": "1"}, "ss_network_alpha is 1, but no module has that alpha"),
        (METADATA | {"sshs_model_hash": "0" * 64}, "sshs_model_hash is not the hash of the data"),
        ({}, "no metadata"),
    ],
)
def test_notes_are_problems_when_strict(
    write: Any, inspect: Any, metadata: dict[str, str], note: str
) -> None:
    path = write("a.safetensors", [ONE, TWO], [], metadata)
    assert note in check(inspect, path)["notes"][0]
    record = check(inspect, path, "--strict")
    assert note in record["problems"][0]


def test_tensors_of_no_module(write: Any, inspect: Any) -> None:
    path = write("a.safetensors", [ONE, TWO], [], METADATA, changes={"spare": np.ones(2)})
    assert check(inspect, path)["notes"][0].startswith("1 tensor belong")


@pytest.mark.slow
def test_mutated_files_never_surprise(data: Path, inspect: Any, tmp_path: Path) -> None:
    """Bytes changed at random, a seeded part of the 10,000 files that were tried once."""
    rng = np.random.default_rng(20)
    source = (data / "sample.safetensors").read_bytes()
    path = tmp_path / "a.safetensors"
    for _ in range(150):
        content = bytearray(source)
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        done = inspect("check", path)
        assert done.code in (1, 2)
        assert done.err.count("\n") == (done.code == 2)
        assert "unexpected error" not in done.err
