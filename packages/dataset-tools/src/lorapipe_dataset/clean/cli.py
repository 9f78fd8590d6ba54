"""``lora-clean``: captions in, cleaner captions out. Nothing heavy is imported."""

from __future__ import annotations

from typing import Any

import click

from lorapipe_dataset.clean.settings import FOREIGN, MODES, ORDER
from lorapipe_engine.command.foreign import foreign_notes, foreign_options
from lorapipe_engine.command.modes import mode_options, read_mode
from lorapipe_engine.command.tool import say, tool_command

EXAMPLES = """
lora-clean imgs/ --trigger "shiina mayuri" --drop-file drop.txt --dry-run
lora-clean imgs/ --trigger "shiina mayuri" --drop-file drop.txt
lora-clean --undo imgs/
lora-tag imgs/ | lora-clean --trigger "shiina mayuri" --several-people | lora-repeats -o dataset/ --kind character
lora-clean imgs/ --spaces --drop "*background, re:rating:.*" --replace "grey hair=silver hair" --overlap
lora-clean imgs/ --aliases aliases.csv --implications implications.csv --max-tokens 225
lora-clean tagger-a/ --union tagger-b/
lora-clean imgs/ --from gallery-dl --categories character,general
lora-clean imgs/ --to metadata -o imgs/metadata.jsonl
"""


@tool_command("lora-clean", examples=EXAMPLES)
@click.argument("inputs", nargs=-1, metavar="[PATH]...")
@mode_options(*MODES, order=ORDER)
@foreign_options(FOREIGN)
def lora_clean(inputs: tuple[str, ...], **flags: Any) -> int:
    """Clean captions: every operation as an option, done in one order, the same again when done twice.

    PATH are folders, caption files, pictures, or - for paths and records on standard input, which is also read without
    any. Files are changed in place with a journal; in a pipe the records go on with the new captions.
    """
    chosen = read_mode(MODES, flags)
    notes = foreign_notes(FOREIGN)
    from lorapipe_dataset.clean.options import Options
    from lorapipe_dataset.clean.run import run

    options = Options.of(inputs, chosen)
    for note in notes:
        say(f"lora-clean: note: {note}")
    return run(options)


def main() -> None:
    """Entry point of ``lora-clean``."""
    lora_clean.main()
