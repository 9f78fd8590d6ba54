"""Networks into a base: opened, merged, and written in the base's form or as a single file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from lorapipe_engine.checkpoints.opened import open_base
from lorapipe_engine.errors import ConfigError
from lorapipe_engine.files.tensorfile import check_weights_output
from lorapipe_merge.blocks import parse_blocks
from lorapipe_merge.checkpoint.merge import Inputs, Wishes, write_merge
from lorapipe_merge.checkpoint.report import Report
from lorapipe_merge.inputs import open_networks
from lorapipe_merge.single.turn import Wishes as Turning
from lorapipe_merge.single.turn import turn


def merge_checkpoint(
    base_name: str, networks: Sequence[tuple[str, float]], output: Path, blocks: str | None, wishes: Wishes
) -> Report:
    """Merge networks, each with its ratio, into a base, and write the result, unless it is a dry run.

    Raises LoraErrors; whatever happens, nothing that stood there before is changed unless all went well.
    """
    with open_base(base_name) as base, open_networks(networks) as applied:
        weights = parse_blocks(blocks, base.family) if blocks is not None else None
        inputs = Inputs(base, applied, weights, blocks)
        if base.folder and output.suffix == ".safetensors":
            return _merge_to_file(inputs, output, wishes)
        return write_merge(inputs, output, wishes)


def _merge_to_file(inputs: Inputs, output: Path, wishes: Wishes) -> Report:
    """A merge into a folder, written as a single file: first as a folder beside it, which is then turned into one."""
    if output.is_dir():
        raise ConfigError(f"{output}: is a folder; name the file, as in -o {output / 'merged.safetensors'}")
    check_weights_output(output, force=wishes.force)
    with TemporaryDirectory(prefix=".lorapipe-", suffix=".tmp", dir=output.parent) as work:
        merged = Path(work, output.stem)
        report = write_merge(inputs, merged, wishes)
        turned = Turning(
            metadata=wishes.metadata,
            allow_nonfinite=wishes.allow_nonfinite,
            force=wishes.force,
            dry_run=wishes.dry_run,
        )
        done = turn(str(inputs.base.path if wishes.dry_run else merged), output, turned)
    report.output = str(output)
    report.notes += [f"written as a single file, {done.tensors} tensors", *done.notes]
    return report
