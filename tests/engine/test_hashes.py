from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.dtypes import Array
from lorapipe_engine.files.hashes import data_hash, legacy_hash, network_hashes, sha256_file
from lorapipe_engine.files.tensorfile import write_tensors

GOLDEN = json.loads((Path(__file__).parents[1] / "data" / "weights" / "f_hash_norm.json").read_text())


def tensor(recipe: dict[str, Any]) -> Array:
    """The tensor that the golden file describes: ((arange(n)*k % 1009)/1009 - 0.5)."""
    count = np.arange(recipe["n"]) * recipe["k"] % 1009
    values = count.astype(np.float32) / np.float32(1009) - np.float32(0.5)
    found: Array = values.reshape(recipe["shape"]).astype(recipe["dtype"].removeprefix("torch."))
    return found


@pytest.mark.parametrize("case", GOLDEN["hashes"], ids=lambda case: case["name"])
def test_network_hashes(case: dict[str, Any], tmp_path: Path) -> None:
    tensors = {recipe["key"]: tensor(recipe) for recipe in case["tensors"]}
    expected = (case["sshs_model_hash"], case["sshs_legacy_hash"])
    assert network_hashes(tensors, case["metadata"]) == expected
    # And the data part of the file itself, whatever its metadata.
    path = tmp_path / "a.safetensors"
    write_tensors(path, tensors, {**case["metadata"], "sshs_model_hash": "x"})
    assert data_hash(path) == case["sshs_model_hash"]


@pytest.mark.parametrize("case", GOLDEN["model_hash"], ids=lambda case: case["n"])
def test_model_hashes(case: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(bytes((i * 37 + case["n"]) % 251 for i in range(case["n"])))
    assert legacy_hash(path) == case["old_hash"]
    assert sha256_file(path) == case["sha256"]


@pytest.mark.parametrize("function", [legacy_hash, sha256_file, data_hash])
def test_files_that_are_not_there(function: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        function(tmp_path / "absent")
