"""``lora-convert``: a network in, the same network out in the names and form of another program."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from lorapipe_engine.command.modes import mode_options, read_mode
from lorapipe_engine.command.records import write_json, write_path
from lorapipe_engine.command.text import counted
from lorapipe_engine.command.tool import say, tool_command
from lorapipe_engine.errors import ConfigError
from lorapipe_merge.convert.settings import MODES, FormSettings, ResultSettings

EXAMPLES = """
lora-convert mina.safetensors --to diffusers -o mina-diffusers.safetensors
lora-convert adapter_folder --to kohya -o mina.safetensors --verify
lora-convert mina.safetensors --to peft -o mina-peft
lora-convert mixed-ranks.safetensors --to kohya --one-alpha -o mina.safetensors
lora-convert loha.safetensors --to diffusers --to-lora -o mina.safetensors
"""


@tool_command("lora-convert", examples=EXAMPLES)
@click.argument("source", metavar="NETWORK")
@mode_options(*MODES)
def lora_convert(source: str, **flags: Any) -> int:
    """Write a network in the names and form that another program reads: the same change, for its readers.

    NETWORK is a file in any program's names, or PEFT's folder. What the scheme cannot say is refused before anything
    is written. The path of the result goes to stdout, the report to stderr.
    """
    chosen = read_mode(MODES, flags)
    form, result = chosen[FormSettings], chosen[ResultSettings]
    if form.scheme is None:
        raise ConfigError("give the names to write: --to kohya, diffusers, peft, ...")
    if result.output is None and result.dry_run:
        result = replace(result, output="converted.safetensors", force=True)
    if result.output is None:
        raise ConfigError("give the file to write: -o converted.safetensors")
    from lorapipe_merge.convert.run import Wishes, convert
    from lorapipe_merge.convert.schemes import SCHEMES as ROWS

    row = ROWS[form.scheme]
    if form.one_alpha and not row.alphas:
        raise ConfigError(f"--one-alpha has no use with --to {form.scheme}, which has no alphas")
    asked = Wishes(
        precision=result.precision,
        family=form.family,
        one_alpha=form.one_alpha,
        to_lora=form.to_lora,
        skip=form.skip,
        verify=result.verify,
        dry_run=result.dry_run,
        force=result.force,
    )
    report = convert(Path(source), Path(result.output), row, asked)
    left_out = f", {len(report.skipped)} left out" if report.skipped else ""
    say(f"{report.source}: {counted(report.modules, 'module')} as {form.scheme}{left_out}")
    for name in report.skipped:
        say(f"left out: {name}")
    for note in report.notes:
        say(f"note: {note}")
    if report.difference is not None:
        say(f"verified: the change of every module is the same to {report.difference:.2g} of itself")
    if result.as_json:
        write_json(report.as_record() | ({"path": None} if asked.dry_run else {}))
    elif not asked.dry_run:
        write_path(Path(report.output))
    return 0


def main() -> None:
    """Entry point of ``lora-convert``."""
    lora_convert.main()
