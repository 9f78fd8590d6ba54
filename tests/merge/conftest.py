"""The command itself, run as users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lorapipe_merge.networks.merge import merge_networks
from support.sums import wishes

DATA = Path(__file__).resolve().parents[1] / "data" / "merge"
Run = Callable[..., "subprocess.CompletedProcess[str]"]
Add = Callable[..., int]


@pytest.fixture
def data() -> Path:
    """The golden merges."""
    return DATA


@pytest.fixture
def merge(tmp_path: Path) -> Run:
    """Runs lora-merge in a folder of its own."""

    def run(*words: object, **extra: object) -> subprocess.CompletedProcess[str]:
        code = "from lorapipe_merge.cli import main; main()"
        environment = {**os.environ, **{key: str(value) for key, value in extra.items()}}
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, words)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def add(tmp_path: Path) -> Add:
    """Adds networks in a folder of its own: ``add({"a.safetensors": 0.7}, mode="svd", rank=4)``. Files are verified."""

    def run(ratios: Mapping[Path | str, float], output: object = "sum.safetensors", **options: Any) -> int:
        name = str(output) if output == "-" else str(tmp_path / str(output))
        inputs = [(str(tmp_path / path) if path != "-" else "-", ratio) for path, ratio in ratios.items()]
        usual = {"force": True, "verify": name != "-" and not options.get("dry_run", False)}
        return merge_networks(inputs, wishes(name, **{**usual, **options}))

    return run
