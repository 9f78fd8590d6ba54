"""Running lora-inspect, and small networks for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorapipe_engine.files.dtypes import Array
from lorapipe_engine.files.tensorfile import Encoded, encode, write_tensors
from lorapipe_inspect.cli import lora_inspect
from support import called
from support.called import caller

DATA = Path(__file__).parents[1] / "data" / "inspect"
TOOLS = Path(sys.executable).parent


class Result(called.Result[bytes]):
    """What a run of the command left."""

    @property
    def record(self) -> dict[str, Any]:
        """The JSON of one file; the status must say the same as its verdict."""
        record: dict[str, Any] = json.loads(self.out)
        assert self.code == {"clean": 0, "problem": 1}[record["verdict"]]
        return record


Inspect = Callable[..., Result]
WriteNetwork = Callable[..., Path]
Shell = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def data() -> Path:
    """The folder with the golden files."""
    return DATA


@pytest.fixture
def inspect(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Inspect:
    """The tool, in this process: ``inspect("zeros", "a.safetensors", stdin=b"")``."""
    return caller(lora_inspect, Result, monkeypatch, capfdbinary, text=False)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A line of bash in the test's folder, with the installed tools in the path."""

    def run(line: str, **extra: Any) -> subprocess.CompletedProcess[bytes]:
        environment = os.environ | {"PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, check=False, **extra
        )

    return run


@pytest.fixture
def write(tmp_path: Path) -> WriteNetwork:
    """Write a network of modules with the up factors of ``dead`` left at zero, ``changes`` applied."""

    def write_network(
        name: str,
        modules: list[str],
        dead: list[str],
        metadata: Mapping[str, str] | None = None,
        *,
        dtype: str = "F32",
        changes: Mapping[str, Array] | None = None,
    ) -> Path:
        rng = np.random.default_rng(3)
        tensors: dict[str, Array] = {}
        for module in modules:
            tensors[f"{module}.lora_down.weight"] = rng.uniform(0.1, 1, (4, 24)).astype(np.float32)
            up = rng.uniform(0.1, 1, (16, 4)).astype(np.float32)
            tensors[f"{module}.lora_up.weight"] = np.zeros_like(up) if module in dead else up
            tensors[f"{module}.alpha"] = np.asarray(2, dtype=np.float32)
        tensors |= changes or {}
        encoded: dict[str, Encoded] = {key: encode(array, dtype) for key, array in tensors.items()}
        path = tmp_path / name
        write_tensors(path, encoded, metadata)
        return path

    return write_network
