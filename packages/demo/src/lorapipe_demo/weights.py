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

# Of 255: what rounding may make of a picture, on a card with its many ways to add up a little more. A merge that is
# forgotten changes pictures by tens.
LARGEST_STEP, LARGEST_STEP_ON_CARD = 2, 8


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


def largest_difference(attached: Sequence[Image], merged: Sequence[Image], kind: str) -> int:
    """The largest step, of 255, between pictures by base and network and the same by the merged base.

    ``kind``: of the device that drew them, such as ``cpu``. Raises ProblemFound where it is more than rounding
    makes there.
    """
    import numpy as np

    pairs = zip(attached, merged, strict=True)
    steps = [np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max() for one, other in pairs]
    step = int(max(steps))
    if step > (LARGEST_STEP if kind == "cpu" else LARGEST_STEP_ON_CARD):
        raise ProblemFound(f"the merged base draws other pictures: {step} of 255 apart")
    return step
