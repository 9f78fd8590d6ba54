"""``lora-tag``: pictures in, captions and records out. Everything heavy is imported when there is work to do."""

from __future__ import annotations

import os
from typing import Any

import click

from lorapipe_engine.command.foreign import foreign_notes, foreign_options
from lorapipe_engine.command.modes import mode_options, read_mode
from lorapipe_engine.command.tool import say, tool_command
from lorapipe_tagger.settings import FOREIGN, MODES, ORDER, VerifySettings

EXAMPLES = """
lora-tag imgs/
lora-tag imgs/ --recursive --model eva02-large --threshold auto
lora-tag imgs/ --trigger "shiina mayuri" --exclude "*hair*, brown_eyes" --existing merge
lora-tag imgs/ --model ./my-tagger --general 0.3 --character off --dry-run
lora-tag imgs/ --model swinv2 --model vit --combine mean
lora-tag imgs/ --no-txt --jsonl > tags.jsonl
lora-tag imgs/a.png --explain
lora-tag --verify --device cuda
find imgs -name '*.png' | lora-tag - --trigger-from-folder
lora-tag imgs/ | lora-clean --trigger "shiina mayuri" | lora-repeats -o dataset/ --kind character
"""


@tool_command("lora-tag", examples=EXAMPLES)
@click.argument("inputs", nargs=-1, metavar="[PATH]...")
@mode_options(*MODES, order=ORDER)
@foreign_options(FOREIGN)
def lora_tag(inputs: tuple[str, ...], **flags: Any) -> int:
    """Tag pictures with a WD14 model and write captions beside them.

    PATH are pictures, folders, or - for paths and JSON records on standard input, which is also read without any. In
    a pipe, or with --jsonl, a record with scores goes to stdout for each picture.
    """
    # Nothing here multiplies matrices with numpy, and its threads would only wait.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    chosen = read_mode(MODES, flags)
    notes = foreign_notes(FOREIGN)
    from lorapipe_tagger.options import Options

    options = Options.of(inputs, chosen)
    for note in notes:
        say(f"lora-tag: note: {note}")
    if chosen[VerifySettings].verify:
        from lorapipe_tagger.verify import verify

        return verify(options)
    from lorapipe_tagger.run import run

    return run(options)


def main() -> None:
    """Entry point of ``lora-tag``."""
    lora_tag.main()
