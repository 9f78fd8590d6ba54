"""What one does with a finished network: look into it, make it smaller, merge it into its base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorapipe_demo import recipe
from lorapipe_demo.programs import run, say_lines
from lorapipe_engine.errors import ProblemFound
from lorapipe_engine.models.bases import demo_base

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_STEP = 2  # of 255: what rounding may make of a picture


def inspect(networks: Sequence[Path]) -> None:
    """Show what ``lora-inspect zeros`` says of every epoch."""
    say_lines(run(("lora-inspect", "zeros", *map(str, networks))))


def resize(network: Path, output: Path) -> Path:
    """A network of half the rank."""
    words = ("-o", str(output), "--new_rank", recipe.SMALL_RANK, "--force")
    return Path(run(("lora-resize", str(network), *words)).strip())


def merge(network: Path, output: Path) -> Path:
    """The demo base with the network in it."""
    words = ("-o", str(output), "--save-precision", "fp32", "--verify", "--force")
    return Path(run(("lora-merge", str(demo_base()), str(network), *words)).strip())


def largest_difference(attached: Sequence[Image], merged: Sequence[Image]) -> int:
    """The largest step, of 255, between pictures by base and network and the same by the merged base.

    Raises ProblemFound where it is more than rounding makes.
    """
    import numpy as np

    pairs = zip(attached, merged, strict=True)
    steps = [np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max() for one, other in pairs]
    step = int(max(steps))
    if step > LARGEST_STEP:
        raise ProblemFound(f"the merged base draws other pictures: {step} of 255 apart")
    return step
