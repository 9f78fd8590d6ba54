"""Torch's tensors in our files and in the official library's: the same numbers, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from lorapipe_engine.files.tensorfile import open_tensors, write_tensors  # noqa: E402
from lorapipe_engine.train.base.torchfile import NAMES, decoded, encoded  # noqa: E402
from lorapipe_engine.train.base.weights import Weights  # noqa: E402


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Every type that our files hold, with NaN, infinities, signed zeros and subnormal numbers among the floats; a
    number alone, an empty tensor, and one whose elements do not lie in a row."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    by_name = {
        str(dtype): (torch.arange(6) % 2).to(dtype).reshape(2, 3)
        for dtype in NAMES
        if not dtype.is_floating_point
    }
    by_name |= {
        "every float16": bits.view(torch.float16).clone(),
        "every bfloat16": bits.view(torch.bfloat16).clone(),
        "float32": torch.tensor([[float("nan"), float("-inf"), -0.0, 1e-45, 3.4e38, 0.1]]),
        "float64": torch.tensor([float("nan"), float("inf"), -0.0, 5e-324, 0.1], dtype=torch.float64),
        "number": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "turned": torch.arange(12.0).reshape(3, 4).T,
    }
    return by_name


def same(one: Tensor, two: Tensor) -> bool:
    """Whether type, shape and every bit are equal; NaN too."""
    return one.dtype == two.dtype and one.shape == two.shape and bytes_of(one) == bytes_of(two)


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def test_the_official_library_reads_what_we_write(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "ours.safetensors"
    write_tensors(path, {name: encoded(tensor) for name, tensor in tensors.items()}, {"who": "ours"})
    theirs = load_file(path)
    assert theirs.keys() == tensors.keys()
    assert [name for name in tensors if not same(theirs[name], tensors[name])] == []


def test_we_read_what_the_official_library_writes(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"who": "theirs"})
    with open_tensors(path) as file, Weights([path]) as weights:
        assert file.metadata == {"who": "theirs"}
        assert file.tensors.keys() == tensors.keys()
        assert [name for name in tensors if not same(decoded(file, name), tensors[name])] == []
        assert [name for name in tensors if not same(weights.load(name), tensors[name])] == []


def test_both_write_the_same_bytes(tmp_path: Path) -> None:
    network = {f"lora_unet_{n}.lora_up.weight": torch.randn(8, 4).half() for n in range(5)}
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    write_tensors(ours, {name: encoded(tensor) for name, tensor in network.items()}, {})
    save_file(network, theirs)
    assert ours.read_bytes() == theirs.read_bytes()
