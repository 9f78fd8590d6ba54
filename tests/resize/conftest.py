"""Running the command, and small networks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lorapipe_engine.files.dtypes import Array
from lorapipe_engine.files.tensorfile import encode, write_tensors
from lorapipe_resize.cli import lora_resize
from lorapipe_resize.extract.cli import lora_extract
from support.called import Result, caller

DATA = Path(__file__).parents[1] / "data"


Resize = Callable[..., Result[bytes]]


@pytest.fixture
def resize(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Resize:
    """The command, in this process: ``resize("a.safetensors", "-o", "b.safetensors")``."""
    return caller(lora_resize, Result[bytes], monkeypatch, capfdbinary, text=False)


@pytest.fixture
def extract(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Resize:
    """The command, in this process: ``extract("tuned.safetensors", "base.safetensors", "-o", "lora.safetensors")``."""
    return caller(lora_extract, Result[bytes], monkeypatch, capfdbinary, text=False)


def lora_tensors(modules: dict[str, tuple[int, int, int]], seed: int = 0) -> dict[str, Array]:
    """LoRA tensors for modules name -> (out, in, rank), alpha half the rank, falling singular values."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    for name, (out, inputs, rank) in modules.items():
        fall = np.exp(-np.arange(rank) / 3)
        tensors[f"{name}.lora_up.weight"] = (rng.standard_normal((out, rank)) * fall).astype(np.float32)
        tensors[f"{name}.lora_down.weight"] = rng.standard_normal((rank, inputs)).astype(np.float32)
        tensors[f"{name}.alpha"] = np.asarray(rank / 2, dtype=np.float32)
    return tensors


SMALL = {
    "lora_te_text_model_encoder_layers_0_mlp_fc1": (48, 32, 8),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q": (40, 40, 8),
}


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A small LoRA file, its name with a space."""
    path = tmp_path / "my net.safetensors"
    tensors = {name: encode(array, "F16") for name, array in lora_tensors(SMALL).items()}
    metadata = {"ss_network_dim": "8", "ss_network_alpha": "4.0", "ss_training_comment": "first run"}
    write_tensors(path, tensors, metadata | {"ss_network_module": "networks.lora", "sshs_model_hash": "old"})
    return path
