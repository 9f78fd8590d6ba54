"""The command, with the words of its users."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from lorapipe_merge.networks.merge import merge_networks
from support.commands import run
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
    """Runs lora-merge in a folder of its own; further names are variables of its environment."""

    def run_merge(*words: object, **extra: object) -> subprocess.CompletedProcess[str]:
        return run("lora-merge", *words, cwd=tmp_path, env={key: str(value) for key, value in extra.items()})

    return run_merge


@pytest.fixture
def add(tmp_path: Path) -> Add:
    """Adds networks in a folder of its own: ``add({"a.safetensors": 0.7}, mode="svd", rank=4)``. Files are verified."""

    def run_add(
        ratios: Mapping[Path | str, float], output: object = "sum.safetensors", **options: Any
    ) -> int:
        name = str(output) if output == "-" else str(tmp_path / str(output))
        inputs = [(str(tmp_path / path) if path != "-" else "-", ratio) for path, ratio in ratios.items()]
        usual = {"force": True, "verify": name != "-" and not options.get("dry_run", False)}
        return merge_networks(inputs, wishes(name, **{**usual, **options}))

    return run_add
