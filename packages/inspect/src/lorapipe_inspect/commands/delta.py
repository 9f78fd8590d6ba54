"""``lora-inspect delta``: the dense change that a network makes, module by module."""

from __future__ import annotations

from pathlib import Path

import click

from lorapipe_engine.command.records import write_json, write_path
from lorapipe_engine.command.scalars import Number
from lorapipe_engine.command.tool import say, tool_command
from lorapipe_engine.errors import ConfigError

EXAMPLES = """
lora-inspect delta mina.safetensors -o delta.safetensors
lora-inspect delta mina.safetensors --base base.safetensors --multiplier 0.7 -o delta.safetensors
"""


@tool_command("lora-inspect delta", examples=EXAMPLES)
@click.argument("network", metavar="FILE")
@click.option("-o", "--output", metavar="OUT", help="The file of changes to write.")
@click.option("--base", metavar="BASE", help="A checkpoint, or a file of MODULE.weight and MODULE.bias.")
@click.option(
    "--multiplier",
    type=Number(),
    default=1.0,
    show_default=True,
    help="Strength at which the network's change is taken.",
)
@click.option(
    "--save-precision",
    "precision",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="Number type of the result.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was done as one JSON object.")
@click.option("-n", "--dry-run", is_flag=True, help="Compute everything, write nothing.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
def command(
    network: str,
    output: str | None,
    base: str | None,
    multiplier: float,
    precision: str,
    as_json: bool,
    dry_run: bool,
    force: bool,
) -> int:
    """Write W' - W of every module of a network, for any algorithm.

    A tensor of OUT is called as its module and has the shape of the layer's weight; the change of a bias is called
    MODULE.bias. BASE is needed only where the change depends on the weights (DoRA, OFT, GLoRA, (IA)³); it also settles
    the shape of convolutions whose factors are stored flat. FILE may be - for a network on standard input. The path of
    OUT goes to stdout.
    """
    if not output and not dry_run:
        raise ConfigError("give the file to write: -o delta.safetensors, or -n to write nothing")
    target = Path(output) if output else None
    from lorapipe_inspect.inputs import read_one
    from lorapipe_inspect.measure.dense import write_deltas

    with read_one(network).open() as file:
        count = write_deltas(
            file, base, target, multiplier=multiplier, precision=precision, dry_run=dry_run, force=force
        )
    say(f"{network}: {count} changes at {multiplier:g}")
    if as_json:
        write_json(
            {
                "path": None if dry_run else output,
                "source": network,
                "base": base,
                "multiplier": multiplier,
                "precision": precision,
                "changes": count,
            }
        )
    elif target is not None and not dry_run:
        write_path(target)
    return 0
