"""``lora-inspect delta`` against what LyCORIS' own modules apply: every algorithm on linear layers and convolutions.

tests/data/lycoris.safetensors holds the tensors of each network (``lora_unet_<case>.*``), the layer it is on
(``base/lora_unet_<case>.*``), and that layer as it works with the network
(``expected/<multiplier>/lora_unet_<case>.*``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lorapipe_engine.files.dtypes import Array
from lorapipe_engine.files.tensorfile import open_tensors, write_tensors
from support.commands import run

GOLDEN = Path(__file__).resolve().parents[1] / "data" / "lycoris.safetensors"


def read(path: Path) -> dict[str, Array]:
    with open_tensors(path) as file:
        return {key: file.read(key) for key in file.tensors}


def below(tensors: dict[str, Array], folder: str) -> dict[str, Array]:
    return {key.removeprefix(folder): value for key, value in tensors.items() if key.startswith(folder)}


@pytest.mark.parametrize("multiplier", ["1.0", "0.7"])
def test_layers_work_as_with_the_reference_modules(multiplier: str, tmp_path: Path) -> None:
    tensors = read(GOLDEN)
    base, expected = below(tensors, "base/"), below(tensors, f"expected/{multiplier}/")
    net = {key: value for key, value in tensors.items() if "/" not in key}
    write_tensors(tmp_path / "net.safetensors", net)
    write_tensors(tmp_path / "base.safetensors", base)
    out = tmp_path / "out.safetensors"
    words = ["delta", "net.safetensors", "--base", "base.safetensors", "--multiplier", multiplier, "-o", out]
    done = run("lora-inspect", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = read(out)
    apart = {}
    for key, target in expected.items():
        module, part = key.rsplit(".", 1)
        change = found.get(module if part == "weight" else f"{module}.bias", np.zeros(()))
        worked = base[key].astype(np.float64) + change
        apart[key] = float(np.linalg.norm(worked - target) / np.linalg.norm(target))
    assert len({key.rsplit(".", 1)[0] for key in expected}) == 54
    assert {key: value for key, value in apart.items() if not value <= 1e-5} == {}
