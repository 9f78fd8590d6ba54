"""``lora-grid``: cells in; a labelled picture, a page, figures and a choice out. Imports are late."""

from __future__ import annotations

from typing import Any

import click

from lorapipe_engine.command.modes import mode_options, read_mode
from lorapipe_engine.command.tool import tool_command
from lorapipe_inspect.grid.settings import MODES

EXAMPLES = """
lora-grid cells/ -o grid.png
lora-grid cells/ --html grid.html --x file --y seed
lora-grid cells.jsonl --html grid.html --best --trigger "shiina mayuri"
lora-tag cells/ --no-txt --jsonl | lora-grid --best --trigger mina --dataset imgs/
lora-grid cells.jsonl --best --ccip ccip-caformer-24-randaug-pruned/ --held-out kept/
"""


@tool_command("lora-grid", examples=EXAMPLES)
@click.argument("inputs", nargs=-1, metavar="[CELLS]...")
@mode_options(*MODES)
def lora_grid(inputs: tuple[str, ...], **flags: Any) -> int:
    """Lay out cells as one labelled picture or one page, measure them, and name the network to take.

    CELLS are pictures, folders of them, lists of records (.jsonl), or - for records on standard input, which is also
    read without any. Values come from the records, else from the parameters in the pictures (A1111's). Without -o and
    --html the axes and figures are printed.
    """
    chosen = read_mode(MODES, flags)
    from lorapipe_engine.command.process.processors import use_one_blas_thread

    use_one_blas_thread()
    from lorapipe_inspect.grid.run import run

    return run(inputs, chosen)


def main() -> None:
    """Entry point of ``lora-grid``."""
    lora_grid.main()
