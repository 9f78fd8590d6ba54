"""``lora-inspect compat``: which programs read a network, and how."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from lorapipe_engine.command.tool import show, tool_command
from lorapipe_inspect.arguments import file_arguments

if TYPE_CHECKING:
    from lorapipe_engine.files.tensorfile import WeightFile
    from lorapipe_inspect.inputs import Input

EXAMPLES = """
lora-inspect compat mina.safetensors
lora-inspect compat run/ --json
"""


@tool_command("lora-inspect compat", examples=EXAMPLES)
@file_arguments
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per file.")
def command(inputs: tuple[str, ...], recursive: bool, as_json: bool) -> int:
    """Tell what each program does with a network: by its names, algorithms, alphas and number types.

    "yes", "no", "in part" or "wrong", how many modules each applies as they are meant, what it passes over or applies
    at another strength, and the command that makes a file for it; as measured with the programs' own loaders. Exit code
    1 if no other program reads the whole file. FILE are files, folders, or - for standard input.
    """
    from lorapipe_engine.command.text import printable
    from lorapipe_inspect.inputs import each_file
    from lorapipe_inspect.measure.programs import examine, facts_of

    def work(one: Input, file: WeightFile) -> bool:
        facts = facts_of(file)
        answers = examine(file, one.name)
        if as_json:
            programs = {name: answer.as_record() for name, answer in answers.items()}
            click.echo(
                json.dumps({"path": one.name, "file": one.name, **facts.as_record(), "programs": programs})
            )
        else:
            show(f"{printable(one.name)}: {facts.in_words()}")
            for name, answer in answers.items():
                count = f"{answer.applied}/{facts.modules}"
                show(f"  {name:<12}{answer.reads:<9}{count:<12}{'; '.join(answer.why)}".rstrip())
                if answer.mend:
                    show(f"  {'':<12}mend: {answer.mend}")
        return any(answer.reads == "yes" for name, answer in answers.items() if name != "lora-merge")

    return each_file(inputs, work, recursive=recursive)
