"""Write a trained network: safetensors, or for old programs a pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from lorapipe_engine.files.dtypes import Encoded
from lorapipe_engine.files.tensorfile import write_tensors
from lorapipe_engine.files.writing.atomic import atomic_write

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def write_network(
    path: Path, tensors: Mapping[str, Encoded], metadata: Mapping[str, str], *, force: bool
) -> None:
    """Write a network as its suffix says, whole or not at all. A .ckpt or .pt cannot hold the metadata.

    Raises OutputError, also where a file is there and not ``force``.
    """
    if path.suffix == ".safetensors":
        write_tensors(path, tensors, metadata, force=force)
        return
    state = {name: _tensor(row) for name, row in tensors.items()}
    with atomic_write(path, force=force) as file:
        torch.save(state, file)


def _tensor(row: Encoded) -> torch.Tensor:
    return torch.frombuffer(bytearray(row.data), dtype=_DTYPES[row.dtype]).reshape(row.shape)
