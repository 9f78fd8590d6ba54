"""``lora-repeats``: pictures in, a dataset that says how often each comes out."""

from __future__ import annotations

from typing import Any

import click

from lorapipe_dataset.repeats.settings import FOREIGN, MODES
from lorapipe_engine.command.foreign import foreign_notes, foreign_options
from lorapipe_engine.command.modes import mode_options, read_mode
from lorapipe_engine.command.tool import tool_command

EXAMPLES = """
lora-repeats pictures/
lora-repeats pictures/ -o dataset/ --kind character
lora-tag pictures/ | lora-clean --trigger "shiina mayuri" | lora-repeats -o dataset/ --kind character
lora-repeats nekochan/ maid/ -o dataset/ --per-epoch 400 --weight nekochan=2
lora-repeats dataset/ --rename --kind style
lora-repeats pictures/ -o dataset.toml --repeats 10 --repeats maid=6
"""


@tool_command("lora-repeats", examples=EXAMPLES)
@click.argument("inputs", nargs=-1, metavar="[IN]...")
@mode_options(*MODES)
@foreign_options(FOREIGN)
def lora_repeats(inputs: tuple[str, ...], **flags: Any) -> int:
    """Choose how often each concept's pictures come in an epoch, and build the dataset.

    IN are pictures, folders of pictures, or folders of such folders; without any, paths or records are read from
    standard input. Each folder is a concept, named after it (6_maid is maid); records with a trigger, as lora-clean
    --trigger gives, are a concept of that name. Pictures take their captions along.
    Without -o the numbers are printed; with it the path of the dataset goes to stdout.
    """
    chosen = read_mode(MODES, flags)
    foreign_notes(FOREIGN)
    from lorapipe_dataset.repeats.run import Options, run

    return run(Options.of(inputs, chosen))


def main() -> None:
    """Entry point of ``lora-repeats``."""
    lora_repeats.main()
