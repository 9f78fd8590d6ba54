"""``lora-merge``: networks into a checkpoint, networks into one, checkpoints into one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorapipe_engine.command.foreign import foreign_notes, foreign_options
from lorapipe_engine.command.modes import Chosen, mode_options, read_mode
from lorapipe_engine.command.process.processors import use_one_blas_thread
from lorapipe_engine.command.records import write_json, write_path
from lorapipe_engine.command.tool import say, tool_command
from lorapipe_engine.errors import ConfigError
from lorapipe_merge.sd_scripts import MergeCommand, translation
from lorapipe_merge.settings import (
    FOREIGN,
    MODES,
    BlockSettings,
    CheckpointSettings,
    ModelsSettings,
    NetworksSettings,
    OutputSettings,
    SharedSettings,
    VerifySettings,
)

if TYPE_CHECKING:
    from lorapipe_merge.checkpoint.merge import Wishes
    from lorapipe_merge.checkpoint.report import Report

EXAMPLES = """
lora-merge base.safetensors mina.safetensors --ratio 0.8 -o merged.safetensors
lora-merge base.safetensors mina.safetensors:0.8 style.safetensors:0.5 -o merged.safetensors --verify
lora-merge base.safetensors style.safetensors --blocks IN04=0.5,MID=0,TE=0 -o merged.safetensors
lora-merge base.safetensors mina.safetensors --save-precision fp32 -o m32.safetensors
lora-merge --undo m32.safetensors -o base-again.safetensors
lora-merge --networks mina.safetensors:0.7 style.safetensors:0.5 -o both.safetensors
lora-merge --networks mina.safetensors style.safetensors --mode svd --new-rank 32 -o both.safetensors --verify
lora-merge --networks run-0000*.safetensors --average ema:0.8 -o averaged.safetensors
lora-merge --networks style.safetensors --blocks MID=0,TE=0.5 -o weaker.safetensors
lora-merge --models old.ckpt --prune --save-precision fp16 -o small.safetensors
lora-merge --models a.safetensors b.safetensors --method weighted-sum --ratio 0.3 -o ab.safetensors
"""


@tool_command("lora-merge", examples=EXAMPLES, cls=MergeCommand)
@click.argument("inputs", nargs=-1, metavar="BASE LORA[:RATIO]...", required=True)
@mode_options(*MODES)
@foreign_options(FOREIGN)
def lora_merge(inputs: tuple[str, ...], **flags: Any) -> int:
    """Merge LoRA networks into a checkpoint, networks into one network, or checkpoints.

    BASE is a checkpoint of SD 1.x, SD 2.x or SDXL, a diffusers folder, or the word demo. A ratio is what
    <lora:name:0.8> means in a prompt. Every module has to find its place, or nothing is written. The path of the
    result goes to stdout, the report to stderr.
    """
    use_one_blas_thread()
    notes = foreign_notes(FOREIGN)
    if line := translation():
        notes.append(f"sd-scripts' line, here: {line}")
    chosen = read_mode(MODES, flags)
    output = chosen[OutputSettings]
    if output.output is None and output.dry_run:
        # What is not written has a name that stands in nothing's way.
        output = replace(output, output="merged.safetensors", force=True)
        parts = tuple(output if isinstance(part, OutputSettings) else part for part in chosen.parts)
        chosen = replace(chosen, parts=parts)
    if output.output is None:
        raise ConfigError("give the file to write: -o merged.safetensors")
    if output.save_precision and output.merge_precision:
        notes.append(
            "precision is not needed: sums are made in float32 or float64, and --save-precision is given"
        )
    for note in notes:
        say(f"note: {note}")
    run = {"--networks": _networks, "--models": _models, "--undo": _undo}.get(chosen.mode.name, _checkpoint)
    return run(inputs, Path(output.output), chosen)


def _checkpoint(inputs: tuple[str, ...], target: Path, chosen: Chosen) -> int:
    from lorapipe_merge.inputs import with_default
    from lorapipe_merge.run import merge_checkpoint

    if len(inputs) < 2:
        raise ConfigError("give a base and at least one network: lora-merge BASE LORA:0.8 -o OUT")
    base, *names = inputs
    networks = with_default(names, chosen[SharedSettings].ratio)
    networks = [(name, number) for name, number in networks if number] or networks
    wishes = _wishes(
        chosen,
        allow_unmatched=chosen[CheckpointSettings].allow_unmatched,
        metadata=not chosen[SharedSettings].no_metadata,
    )
    report = merge_checkpoint(base, networks, target, chosen[BlockSettings].blocks, wishes)
    return _tell(report, chosen[OutputSettings])


def _undo(inputs: tuple[str, ...], target: Path, chosen: Chosen) -> int:
    from lorapipe_merge.checkpoint.undo import undo_merge

    report = undo_merge(inputs[0], inputs[1:], target, _wishes(chosen, allow_unmatched=True, metadata=False))
    return _tell(report, chosen[OutputSettings])


def _networks(inputs: tuple[str, ...], _target: Path, chosen: Chosen) -> int:
    from lorapipe_merge.inputs import with_default, without_ratios
    from lorapipe_merge.networks.merge import Wishes, merge_networks

    shared, networks = chosen[SharedSettings], chosen[NetworksSettings]
    wishes = Wishes(
        networks,
        chosen[OutputSettings],
        shared,
        verify=chosen[VerifySettings].verify,
        blocks=chosen[BlockSettings].blocks,
    )
    if networks.average is None:
        return merge_networks(with_default(inputs, shared.ratio), wishes)
    return merge_networks(
        without_ratios(inputs, shared.ratio, "--average gives each network its weight"), wishes
    )


def _models(inputs: tuple[str, ...], target: Path, chosen: Chosen) -> int:
    from lorapipe_merge.inputs import with_ratios
    from lorapipe_merge.models.merge import merge_models

    settings = chosen[ModelsSettings]
    if len(inputs) == 1:
        return _single(inputs[0], target, chosen)
    if settings.configs is not None:
        raise ConfigError("--configs has a use only with a single model")
    return merge_models(
        with_ratios(inputs),
        target,
        settings,
        chosen[OutputSettings],
        chosen[SharedSettings],
        chosen[BlockSettings].blocks,
    )


def _single(name: str, target: Path, chosen: Chosen) -> int:
    from lorapipe_merge.single.turn import Wishes, turn

    for word in ("method", "params", "blocks", "ratio"):
        if word in chosen.given:
            label = chosen.mode.fields()[word].label
            raise ConfigError(f"{label} has no use with a single model, which is only written anew")
    settings, output = chosen[ModelsSettings], chosen[OutputSettings]
    wishes = Wishes(
        precision=output.precision,
        ema=settings.ema,
        prune=settings.prune,
        vae=settings.vae,
        configs=settings.configs,
        metadata=not chosen[SharedSettings].no_metadata,
        allow_nonfinite=output.allow_nonfinite,
        dry_run=output.dry_run,
        force=output.force,
    )
    done = turn(name, target, wishes)
    say(f"{done.source}: {done.tensors} tensors, {done.cast} of them in another type")
    for note in done.notes:
        say(f"note: {note}")
    if output.as_json:
        path = None if output.dry_run else str(target)
        write_json({"path": path, "tensors": done.tensors, "cast": done.cast, "notes": done.notes})
    elif not output.dry_run:
        write_path(target)
    return 0


def _wishes(chosen: Chosen, *, allow_unmatched: bool, metadata: bool) -> Wishes:
    from lorapipe_merge.checkpoint.merge import Wishes

    output, verify = chosen[OutputSettings], chosen[VerifySettings].verify
    if verify and output.dry_run:
        raise ConfigError(
            "--verify reads the written file again, and --dry-run writes none: leave out one of them"
        )
    return Wishes(
        precision=output.precision,
        allow_unmatched=allow_unmatched,
        allow_nonfinite=output.allow_nonfinite,
        metadata=metadata,
        verify=verify,
        dry_run=output.dry_run,
        force=output.force,
    )


def _tell(report: Report, output: OutputSettings) -> int:
    for line in report.lines(dry_run=output.dry_run):
        say(line)
    if output.as_json:
        write_json(report.as_record() | ({"path": None} if output.dry_run else {}))
    elif not output.dry_run:
        write_path(Path(report.output))
    return 0


def main() -> None:
    """Entry point of ``lora-merge``."""
    lora_merge.main()
