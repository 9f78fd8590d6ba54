"""What one does with a finished network: look into it, make it smaller, merge it into its base."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from lorapipe_demo import recipe
from lorapipe_engine.bases import demo_base
from lorapipe_engine.command import say
from lorapipe_engine.errors import MissingExtra, ProblemFound

if TYPE_CHECKING:
    from lorapipe_demo.sampling import Painter

TOOLS = {"lora-inspect": "lorapipe_inspect", "lora-resize": "lorapipe_resize", "lora-merge": "lorapipe_merge"}
LARGEST_STEP = 2  # of 255: what rounding may make of a picture


def require_tools() -> None:
    """Raise MissingExtra naming the packages of the tools that are not there."""
    missing = [module.replace("_", "-") for module in TOOLS.values() if find_spec(module) is None]
    if missing:
        raise MissingExtra(f"the demo runs tools that are not installed: pip install {' '.join(missing)}")


def inspect(networks: Sequence[Path]) -> None:
    """Show what ``lora-inspect zeros`` says of every epoch."""
    _run("lora-inspect", "zeros", *map(str, networks), show=True)


def resize(network: Path, output: Path) -> Path:
    """A network of half the rank."""
    return _run("lora-resize", str(network), "-o", str(output), "--new_rank", recipe.SMALL_RANK, "--force")


def merge(network: Path, output: Path) -> Path:
    """The demo base with the network in it."""
    words = ("-o", str(output), "--save-precision", "fp32", "--verify", "--force")
    return _run("lora-merge", str(demo_base()), str(network), *words)


def largest_difference(painter: Painter, network: Path, merged: Painter, prompts: Sequence[str]) -> int:
    """The largest step between pictures by base and network and by the merged base, of 255."""
    import numpy as np

    pairs = zip(painter.draw(prompts, network), merged.draw(prompts, None), strict=True)
    steps = [np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max() for one, other in pairs]
    found = int(max(steps))
    if found > LARGEST_STEP:
        raise ProblemFound(f"the merged base draws other pictures: {found} of 255 apart")
    return found


def _run(tool: str, *words: str, show: bool = False) -> Path:
    """Run a tool as a user would; the path it wrote to stdout."""
    say("$ " + " ".join((tool, *words)))
    code = f"from {TOOLS[tool]}.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True, check=False
    )
    if show:
        say(result.stdout.rstrip("\n"))
    if result.returncode:
        raise ProblemFound(f"{tool} failed with exit status {result.returncode}")
    return Path(result.stdout.strip() or ".")
