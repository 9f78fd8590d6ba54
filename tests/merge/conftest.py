"""The command itself, run as users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[1] / "data" / "merge"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


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
