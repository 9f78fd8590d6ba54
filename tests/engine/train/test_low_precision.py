"""Runs whose base or network is held in few bits, by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("lorapipe_demo")

from safetensors.torch import load_file  # noqa: E402

from lorapipe_engine.cli import lora_train  # noqa: E402
from support.called import status_of  # noqa: E402
from support.dataset import draw_data  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two drawn pictures."""
    return draw_data(tmp_path_factory, pictures=2)


def train(data: Path, out: Path, *more: str) -> None:
    fixed = (
        "--base demo --resolution 64 --max_token_length 75 --network_dim 4 --device cpu --max_train_steps 3"
    )
    assert status_of(lora_train, *fixed.split(), "--train_data_dir", data, "--output_dir", out, *more) == 0


def test_quantized_base_trains_much_alike(data: Path, tmp_path: Path) -> None:
    losses = []
    for form in ((), ("--quantize_base", "int8")):
        place = tmp_path / "-".join(("of", *form))
        train(data, place, *form)
        metrics = next(place.glob("*.metrics.jsonl")).read_text().splitlines()
        losses.append([json.loads(line)["loss/current"] for line in metrics])
    plain, narrow = losses
    assert plain != narrow
    assert narrow == pytest.approx(plain, rel=0.05)


def test_full_bf16_rounds_the_network_in_every_step(data: Path, tmp_path: Path) -> None:
    rounded = []
    for full in ((), ("--full_bf16",)):
        place = tmp_path / "-".join(("of", *full))
        train(data, place, "--mixed_precision", "bf16", "--save_precision", "float", *full)
        found = load_file(next(place.glob("*.safetensors")))
        values = [value for key, value in found.items() if key.endswith("lora_up.weight")]
        assert sum(bool(value.any()) for value in values) > 100
        rounded.append(all(torch.equal(value.bfloat16().float(), value) for value in values))
    assert rounded == [False, True]
