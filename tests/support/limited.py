"""Commands in processes of their own, with a limit on memory and on time."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30
_CODE = """
import sys
limit = int(sys.argv.pop(1))
if limit and sys.platform == "linux":
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
module, name = sys.argv.pop(1).split(":")
from importlib import import_module
getattr(import_module(module), name)()
"""


@dataclass(frozen=True)
class Ended:
    """What a run left: the exit status, and the bytes of both streams."""

    code: int
    out: bytes
    err: bytes

    @property
    def lines(self) -> list[str]:
        """The lines of stderr, of which none is a traceback's."""
        text = self.err.decode("utf-8", "surrogateescape")
        assert "Traceback" not in text, text
        assert "unexpected error" not in text, text
        return text.splitlines()


@cache
def scripts() -> Mapping[str, str]:
    """Every command of the packages: its name and ``module:function``."""
    found: dict[str, str] = {}
    for path in ROOT.glob("packages/*/pyproject.toml"):
        found |= tomllib.loads(path.read_text(encoding="utf-8"))["project"].get("scripts", {})
    return found


def run_limited(
    command: str,
    words: Sequence[object],
    *,
    memory: int = 3 * GIB,
    seconds: float = 30,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> Ended:
    """Run a command with ``memory`` bytes of address space (0: no limit; Linux alone has one) for ``seconds`` at most.

    Raises subprocess.TimeoutExpired.
    """
    # Threads of numpy's BLAS would take address space for nothing.
    few = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", _CODE, str(memory), scripts()[command], *map(str, words)],
        input=stdin,
        capture_output=True,
        timeout=seconds,
        cwd=cwd,
        env={**os.environ, **few, **(env or {})},
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)
