"""What one does with a finished network: look into it, make it smaller, merge it into its base, and out again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorapipe_demo import recipe
from lorapipe_demo.programs import run, say_lines
from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import ProblemFound
from lorapipe_engine.models.bases import demo_base

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_STEP = 2  # of 255: what rounding may make of a picture
LARGEST_ERROR = 1e-3  # of the trained change: what rounding may make of it on its way through the merged base


@dataclass(frozen=True)
class Made:
    """A smaller network, the base with the network in it, and the network out of that again where it is drawn with."""

    small: Path
    merged: Path
    extracted: Path | None = None


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


def extract(merged: Path, network: Path, output: Path) -> Path:
    """The network out of the merged base again. Raises ProblemFound where it is another change than ``network``'s."""
    ranks = ("--dim", recipe.RANK, "--conv-dim", recipe.CONV_RANK, "--save-precision", "float")
    words = (str(merged), str(demo_base()), "-o", str(output), *ranks, "--verify", "--force")
    path = Path(run(("lora-extract", *words)).strip())
    error = check_same_change(network, path)
    say(f"the trained change again, {error:.1g} of it apart")
    return path


def check_same_change(one: Path, other: Path) -> float:
    """‖ΔA - ΔB‖/‖ΔA‖ of two networks, as ``lora-inspect diff`` has it.

    Raises ProblemFound where it is more than rounding, and where a module that only one of them has changes anything.
    """
    # Its status is 1 for two files that are not alike to the last digit.
    record = json.loads(run(("lora-inspect", "diff", str(one), str(other), "--json"), allowed=(0, 1)))
    only = zip((one, other), record["only"], strict=True)
    alone = [name for path, names in only for name in _changing(path, names)]
    if alone:
        raise ProblemFound(f"{other}: another change than {one}: only one of them changes {alone[0]}")
    error = float(record["relative"])
    if not error <= LARGEST_ERROR:
        raise ProblemFound(f"{other}: another change than {one}: {error:.2g} of it apart")
    return error


def _changing(network: Path, names: Iterable[str]) -> list[str]:
    """Which of a network's modules change anything: a text encoder's last layer is not trained at clip skip 2."""
    import numpy as np

    from lorapipe_engine.delta import dense_delta
    from lorapipe_engine.files.picklefile import open_weights
    from lorapipe_engine.networks.describe import describe_network
    from lorapipe_engine.networks.read import read_module

    with open_weights(network) as file:
        modules = describe_network(file).modules
        deltas = {name: dense_delta(read_module(file, modules[name]), name=name) for name in names}
        return [name for name, delta in deltas.items() if np.any(delta.weight)]


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
