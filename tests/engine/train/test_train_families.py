"""Every family trains end to end with the options that change the step, on a tiny base of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from lorapipe_demo.concept import draw_concept
from lorapipe_engine.cli import lora_train
from lorapipe_engine.files.tensorfile import open_tensors
from lorapipe_engine.networks.describe import describe_network
from support import tiny

OPTIONS = [
    *("--resolution", "64", "--train_batch_size", "2", "--max_train_steps", "2", "--network_dim", "4"),
    *("--gradient_checkpointing", "--gradient_accumulation_steps", "2", "--network_dropout", "0.1"),
    *("--network_args", "conv_dim=2", "conv_alpha=1", "rank_dropout=0.1", "module_dropout=0.1"),
    *("--flip_aug", "--cache_latents_to_disk", "--shuffle_caption", "--device", "cpu", "--quiet"),
]


@pytest.mark.parametrize(
    ("family", "precision", "parts"),
    [
        ("sd1", "bf16", {"te1", "unet"}),
        ("sd2", "no", {"te1", "unet"}),
        ("sdxl", "no", {"te1", "te2", "unet"}),
    ],
)
def test_trains(family: str, precision: str, parts: set[str], tmp_path: Path) -> None:
    tiny.save_checkpoint(tiny.build(family), tmp_path / "base.safetensors")
    tiny.write_tokenizer(tmp_path / "tokenizer")
    draw_concept(tmp_path / "data", "mirelune", pictures=4, repeats=2, seed=1)
    words = ["--base", tmp_path / "base.safetensors", "--train_data_dir", tmp_path / "data"]
    words += [
        "--output_dir",
        tmp_path / "out",
        "--cache_dir",
        tmp_path / "cache",
        "--mixed_precision",
        precision,
        "--learning_rate",  # without it SDXL's text encoders stay as they are
        "1e-4",
    ]
    with pytest.raises(SystemExit) as stop:
        lora_train.main([*map(str, words), *OPTIONS])
    assert stop.value.code == 0
    with open_tensors(tmp_path / "out/last.safetensors") as file:
        network = describe_network(file)
        moved = sum(bool(file.read(name).any()) for name in file.tensors if name.endswith("lora_up.weight"))
    assert set(network.parts) == parts
    assert set(network.ranks) == {2, 4}
    assert moved > len(network.modules) / 2
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 8
