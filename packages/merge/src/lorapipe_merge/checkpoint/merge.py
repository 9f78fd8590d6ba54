"""Networks into an open checkpoint, from top to bottom: match, plan, stream, verify, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorapipe_engine.checkpoints.opened import Base, unread_files
from lorapipe_engine.errors import ConfigError, OutputError
from lorapipe_engine.files.tensorfile import check_weights_output
from lorapipe_engine.files.writing.atomic import check_output
from lorapipe_engine.networks.scaled import refuse_scaled
from lorapipe_merge.blocks import BlockWeights
from lorapipe_merge.checkpoint.report import Report
from lorapipe_merge.checkpoint.result import Result, plan_result, write_result
from lorapipe_merge.finite import check_networks
from lorapipe_merge.matching import Applied, check_match, left_out, match
from lorapipe_merge.recipe import RECIPE_KEY


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How the result is to be written. ``precision``: "keep", "fp16", "bf16" or "fp32"."""

    precision: str
    allow_unmatched: bool
    allow_nonfinite: bool
    metadata: bool
    verify: bool
    dry_run: bool
    force: bool


@dataclass(frozen=True)
class Inputs:
    """What is merged, all of it open: a base, and networks with their ratios and weights by block. ``blocks``: these
    weights as they were given."""

    base: Base
    applied: Sequence[Applied]
    weights: BlockWeights | None
    blocks: str | None = None


def write_merge(inputs: Inputs, output: Path, wishes: Wishes) -> Report:
    """The part of a merge that follows once all inputs are open."""
    base, applied = inputs.base, inputs.applied
    check_networks(applied, allow=wishes.allow_nonfinite)
    for file in base.files:
        refuse_scaled(file.weights)
    matched = match(base, applied, inputs.weights)
    notes = check_match(matched, base, applied, allow_unmatched=wishes.allow_unmatched)
    notes += left_out(applied)
    notes += _merged_before(base, applied)
    notes += _variants(base)
    result = plan_result(
        base, applied, matched, output, inputs.blocks, wishes.precision, metadata=wishes.metadata
    )
    _check_room(base, result, output, wishes)
    report = Report.of(base, applied, matched, notes, output=output, size=result.size)
    if not wishes.dry_run:
        write_result(result, report, force=wishes.force, verify=wishes.verify, allow=wishes.allow_nonfinite)
    return report


def _merged_before(base: Base, applied: Sequence[Applied]) -> list[str]:
    """Notes on networks that the base's recipe has already."""
    recipe = base.files[0].weights.metadata.get(RECIPE_KEY, "")
    return [
        f"{network.name} is merged into {base.path.name} already; now it is in it twice (--undo takes one out)"
        for network in applied
        if network.sha256 in recipe
    ]


def _variants(base: Base) -> list[str]:
    """A note on files of a folder that keep the weights in another type, and are not in the result."""
    left = unread_files(base)
    if not left:
        return []
    return [
        f"not in the result, since they keep the weights as they were: {', '.join(left)}; --save-precision fp16 makes "
        "one of half the size"
    ]


def _check_room(base: Base, result: Result, output: Path, wishes: Wishes) -> None:
    """Everything about the output that can be known before the work."""
    for file in base.files:
        if (
            output.exists()
            and file.weights.path.exists()
            and output.samefile(file.weights.path)
            and not wishes.force
        ):
            raise ConfigError(f"{output}: is the base itself; give --force to replace it, or another -o")
    if base.folder:
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise OutputError(f"{output}: exists already; a diffusers model needs a new folder")
        check_output(output.parent / f".{output.name}", force=True, size=result.size)
        return
    if output.is_dir():
        raise ConfigError(f"{output}: is a folder; name the file, as in -o {output / 'merged.safetensors'}")
    check_weights_output(output, force=wishes.force, size=result.size)
