"""lora-inspect keys: tensors and modules of golden files."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest


def test_tensors_as_in_the_golden_file(data: Path, inspect: Any) -> None:
    expected = json.loads((data / "sample_expect.json").read_text())["tensors"]
    record = json.loads(inspect("keys", data / "sample.safetensors", "--json").out)
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    found = {tensor["name"]: (names[tensor["dtype"]], tensor["shape"]) for tensor in record["tensors"]}
    assert found == {name: (tensor["dtype"], tensor["shape"]) for name, tensor in expected.items()}
    assert record["bytes"] == sum(tensor["bytes"] for tensor in record["tensors"])


def test_lines(data: Path, inspect: Any) -> None:
    lines = inspect("keys", data / "sample.safetensors").lines
    assert lines[0].endswith("sample.safetensors: 64 tensors, 8.33 kB")
    assert len(lines) == 65
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    assert [line.split() for line in lines if line.endswith(f"{name}.lora_down.weight")] == [
        ["F32", "3x12x1x1", "144", "bytes", f"{name}.lora_down.weight"]
    ]
    assert any(line.split()[:2] == ["F32", "scalar"] and line.endswith(f"{name}.alpha") for line in lines)


def test_modules_as_in_the_golden_file(data: Path, inspect: Any) -> None:
    expected = json.loads((data / "sample_expect.json").read_text())["modules"]
    record = json.loads(inspect("keys", data / "sample.safetensors", "--modules", "--json").out)
    found = {
        module["name"]: (module["rank"], module["alpha"])
        for module in record["modules"]
        if module["algo"] == "lora"
    }
    assert found == {name: (module["rank"], module["alpha"]) for name, module in expected.items()}
    assert (record["family"], record["parts"], record["others"]) == ("sd1", {"unet": 9, "te1": 12}, [])
    assert (
        "rank 3    alpha 3      3x3  lora_unet_down_blocks_0_resnets_0_conv1"
        in inspect("keys", data / "sample.safetensors", "--modules").out.decode()
    )


def test_modules_of_something_else(data: Path, inspect: Any) -> None:
    done = inspect("keys", data / "malformed" / "ok_plain.safetensors", "--modules")
    assert (done.code, done.err.count("\n")) == (2, 1)


@pytest.mark.parametrize("command", ["keys", "zeros", "hash", "meta", "check"])
def test_zip_that_is_no_checkpoint(inspect: Any, tmp_path: Path, command: str) -> None:
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("note.txt", "no weights")
    done = inspect(command, path)
    assert (done.code, done.err.count("\n")) == (2, 1)
