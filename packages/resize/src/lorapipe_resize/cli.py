"""``lora-resize``: networks in, smaller networks out. numpy is imported only when there is work to do."""

from __future__ import annotations

from typing import Any

import click

from lorapipe_engine.command.foreign import foreign_notes, foreign_options
from lorapipe_engine.command.modes import mode_options, read_mode
from lorapipe_engine.command.process.processors import use_one_blas_thread
from lorapipe_engine.command.tool import say, tool_command
from lorapipe_resize.settings import FOREIGN, MODES, InputSettings, RankSettings, ResultSettings

EXAMPLES = """
lora-resize big.safetensors -o small.safetensors --new-rank 32
lora-resize big.safetensors -o small.safetensors --new_rank 32 --dynamic_method sv_fro --dynamic_param 0.9
lora-resize big.safetensors -o small.safetensors --target-size 20MB --report
lora-resize run/ -o small/ --new-rank 32 --new-conv-rank 16
lora-resize runs/ -r -o small/ --new-rank 32
ls *.safetensors | lora-inspect zeros | lora-resize --new-rank 32 -o small/
lora-resize big.safetensors --new-rank 32 -o - | lora-inspect zeros -
"""


@tool_command("lora-resize", examples=EXAMPLES)
@click.argument("inputs", nargs=-1, metavar="[IN]...")
@mode_options(*MODES)
@foreign_options(FOREIGN)
def lora_resize(inputs: tuple[str, ...], **flags: Any) -> int:
    """Shrink LoRA networks by exact singular value decomposition.

    IN are files, folders, or - for standard input (a network, or a list of paths); without any, paths are
    read from standard input. Linear algorithms (LoRA, LoCon, LoHa, LoKr, full differences) are resized to
    plain LoRA, what depends on the base model is copied. The paths of the new files go to stdout.
    """
    use_one_blas_thread()
    notes = foreign_notes(FOREIGN)
    chosen = read_mode(MODES, flags)
    for note in notes:
        say(f"note: {note}")
    from lorapipe_resize.run import Options, run

    given = chosen[InputSettings]
    words = (*inputs, given.model) if given.model else inputs
    return run(Options(words, chosen[RankSettings], chosen[ResultSettings], recursive=given.recursive))


def main() -> None:
    """Entry point of ``lora-resize``."""
    lora_resize.main()
