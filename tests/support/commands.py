"""Commands run as their users run them, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TARGETS = {
    "lora-convert": "lorapipe_merge.convert.cli:main",
    "lora-merge": "lorapipe_merge.cli:main",
    "lora-sample": "lorapipe_engine.sample_cli:sample_main",
    "lora-resize": "lorapipe_resize.cli:main",
    "lora-extract": "lorapipe_resize.extract.cli:main",
    "lora-inspect": "lorapipe_inspect.cli:main",
    "lora-grid": "lorapipe_inspect.grid.cli:main",
    "lora-tag": "lorapipe_tagger.cli:main",
    "lora-clean": "lorapipe_dataset.clean.cli:main",
    "lora-check": "lorapipe_dataset.check.cli:main",
    "lora-repeats": "lorapipe_dataset.repeats.cli:main",
}


def run(command: str, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command with its words; what it printed and its status."""
    module, _, function = TARGETS[command].partition(":")
    code = f"import sys; sys.argv[0] = {command!r}; from {module} import {function} as main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False, cwd=cwd
    )
