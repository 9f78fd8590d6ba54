"""What the modules of a network file change."""

from __future__ import annotations

from pathlib import Path

from lorapipe_engine.delta import Array, dense_delta
from lorapipe_engine.files.tensorfile import open_tensors
from lorapipe_engine.networks.describe import describe_network


def changes(path: Path) -> dict[str, Array]:
    """The dense change of every module, (out, in·k·k)."""
    rows = {}
    with open_tensors(path) as file:
        for name, module in describe_network(file).modules.items():
            weight = dense_delta({s: file.read(key) for s, key in module.keys.items()}, name=name).weight
            assert weight is not None
            rows[name] = weight.reshape(weight.shape[0], -1)
    return rows
