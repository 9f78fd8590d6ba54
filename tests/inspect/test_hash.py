"""lora-inspect hash: golden hashes, from files and from a pipe."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from lorapipe_engine.files.tensorfile import write_tensors


def test_golden_hashes(data: Path, inspect: Any) -> None:
    expected = json.loads((data / "sample_expect.json").read_text())["hashes"]
    path = data / "sample.safetensors"
    record = json.loads(inspect("hash", path, "--json").out)
    assert record == {
        "path": str(path),
        "file": str(path),
        "sha256": expected["file_sha256"],
        "autov2": expected["file_sha256"][:10],
        "data_sha256": expected["data_sha256_addnet_v3"],
        "autov3": expected["data_sha256_addnet_v3"][:12],
        "legacy": expected["legacy_0x100000"],
        "stored": None,
    }
    piped = json.loads(inspect("hash", "-", "--json", stdin=path.read_bytes()).out)
    assert piped == record | {"path": "-", "file": "-"}
    lines = inspect("hash", path).lines
    assert [line.split()[-1] for line in lines[1:]] == [record[name] for name in list(record)[2:-1]]


def test_long_file(inspect: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    values = np.random.default_rng(0).random(200_000)
    write_tensors(path, {"a": values}, {"sshs_model_hash": hashlib.sha256(values.tobytes()).hexdigest()})
    content = path.read_bytes()
    window = hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]
    for record in (
        json.loads(inspect("hash", path, "--json").out),
        json.loads(inspect("hash", "-", "--json", stdin=content).out),
    ):
        assert record["legacy"] == window
        assert record["data_sha256"] == record["stored"]
    assert inspect("hash", path).lines[-1].endswith("sshs_model_hash agrees with the data")
