"""What the demo does with its trained network: merged into the base and extracted again it is the same change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lorapipe_merge")
pytest.importorskip("lorapipe_resize")
pytest.importorskip("lorapipe_inspect")

from lorapipe_demo import recipe, weights
from lorapipe_engine.errors import ProblemFound
from lorapipe_engine.files.dtypes import Array, encode
from lorapipe_engine.files.tensorfile import open_tensors, write_tensors
from lorapipe_engine.models.bases import demo_base
from lorapipe_engine.models.keys import locate, lora_name

LAYERS = (".attn1.to_q.weight", ".attn2.to_k.weight", "in_layers.2.weight", "layers.0.mlp.fc1.weight")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A network on some of the demo's layers, as large as trained ones, with one module that changes nothing."""
    numbers = np.random.default_rng(0)
    tensors: dict[str, Array] = {}
    with open_tensors(demo_base()) as base:
        for key, info in base.tensors.items():
            if not key.endswith(LAYERS):
                continue
            (place,) = locate(key, info.shape, "sd1")
            name, (out, inside, *kernel) = lora_name("sd1", place.part, place.path), info.shape
            rank = int(recipe.CONV_RANK if kernel else recipe.RANK)
            down = numbers.standard_normal((rank, inside, *kernel)) / inside
            up = 0.2 * numbers.standard_normal((out, rank, *(1 for _ in kernel)))
            tensors |= {
                f"{name}.lora_down.weight": encode(down, "F16"),
                f"{name}.lora_up.weight": encode(up, "F16"),
            }
    dead = "lora_te_text_model_encoder_layers_3_mlp_fc1"
    tensors[f"{dead}.lora_down.weight"] = encode(np.ones((2, 128)), "F16")
    tensors[f"{dead}.lora_up.weight"] = encode(np.zeros((512, 2)), "F16")
    write_tensors(tmp_path / "network.safetensors", tensors)
    return tmp_path / "network.safetensors"


@pytest.mark.slow
def test_the_merged_base_less_its_base_is_the_trained_change(
    network: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = weights.merge(network, tmp_path / "merged.safetensors")
    extracted = weights.extract(merged, network, tmp_path / "extracted.safetensors")
    told = capsys.readouterr().err
    assert "the trained change again, " in told
    assert weights.check_same_change(network, extracted) < 1e-5

    with open_tensors(network) as file:
        tensors = {key: encode(file.read(key), "F16") for key in file.tensors}
    key = next(key for key in tensors if key.endswith("fc1.lora_up.weight"))
    with open_tensors(network) as file:
        weaker = tensors | {key: encode(file.read(key) * 0.9, "F16")}
    write_tensors(tmp_path / "weaker.safetensors", weaker)
    with pytest.raises(ProblemFound, match="of it apart"):
        weights.check_same_change(tmp_path / "weaker.safetensors", extracted)
    module = key.removesuffix(".lora_up.weight")
    fewer = {key: value for key, value in tensors.items() if not key.startswith(module)}
    write_tensors(tmp_path / "fewer.safetensors", fewer)
    with pytest.raises(ProblemFound, match=f"only one of them changes {module}"):
        weights.check_same_change(tmp_path / "fewer.safetensors", extracted)
