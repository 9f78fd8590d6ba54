"""``lora-convert``: a network in, the same network out in the names and form of another program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from lorapipe_engine.command.records import write_json, write_path
from lorapipe_engine.command.tool import say, tool_command

EXAMPLES = """
lora-convert mina.safetensors --to diffusers -o mina-diffusers.safetensors
lora-convert adapter_folder --to kohya -o mina.safetensors --verify
lora-convert mina.safetensors --to peft -o mina-peft
lora-convert mixed-ranks.safetensors --to kohya --one-alpha -o mina.safetensors
lora-convert loha.safetensors --to diffusers --to-lora -o mina.safetensors
"""
SCHEMES = ("kohya", "diffusers", "diffusers-old", "peft", "comfy", "omi")


@tool_command("lora-convert", examples=EXAMPLES)
@click.argument("source", metavar="NETWORK")
@click.option(
    "--to",
    "scheme",
    type=click.Choice(SCHEMES),
    required=True,
    help="Whose names: sd-scripts' (kohya), diffusers' of today or of 0.18 to 0.21, PEFT's folders, ComfyUI's, "
    "OneTrainer's OMI.",
)
@click.option(
    "-o", "--output", "--save-to", required=True, metavar="OUT", help="The new file; for peft a new folder."
)
@click.option(
    "--one-alpha/--keep-alphas",
    "one_alpha",
    default=None,
    help="One alpha for all modules, the rest in the factors, as diffusers' loader needs it.  [default: in kohya's "
    "names where ranks or alphas differ]",
)
@click.option(
    "--to-lora",
    is_flag=True,
    help="Make LoHa, LoKr and full changes into plain factors, of the rank they need.",
)
@click.option("--skip", is_flag=True, help="Leave out what the scheme has no form for.")
@click.option(
    "--family", type=click.Choice(["sd1", "sd2", "sdxl"]), help="The model, where names do not tell."
)
@click.option(
    "--save-precision",
    "--precision",
    "precision",
    type=click.Choice(["keep", "fp16", "bf16", "fp32", "float"]),
    default="keep",
    show_default=True,
    help="Number type of the result; keep writes fp32 where a strength would be rounded into factors.",
)
@click.option("--verify", is_flag=True, help="Read the result again and compare every module's change.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as a JSON object.")
@click.option("-n", "--dry-run", is_flag=True, help="Check and report, write nothing.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
def lora_convert(source: str, scheme: str, output: str, precision: str, as_json: bool, **wishes: Any) -> int:
    """Write a network in the names and form that another program reads: the same change, for its readers.

    NETWORK is a file in any program's names, or PEFT's folder. What the scheme cannot say is refused before anything
    is written. The path of the result goes to stdout, the report to stderr.
    """
    from lorapipe_merge.convert.run import Wishes, convert
    from lorapipe_merge.convert.schemes import SCHEMES as ROWS

    asked = Wishes(precision={"float": "fp32"}.get(precision, precision), **wishes)
    report = convert(Path(source), Path(output), ROWS[scheme], asked)
    left_out = f", {len(report.skipped)} left out" if report.skipped else ""
    say(f"{report.source}: {report.modules} modules as {scheme}{left_out}")
    for name in report.skipped:
        say(f"left out: {name}")
    for note in report.notes:
        say(f"note: {note}")
    if report.difference is not None:
        say(f"verified: the change of every module is the same to {report.difference:.2g} of itself")
    if as_json:
        write_json(report.as_record())
    elif not asked.dry_run:
        write_path(Path(report.output))
    return 0


def main() -> None:
    """Entry point of ``lora-convert``."""
    lora_convert.main()
