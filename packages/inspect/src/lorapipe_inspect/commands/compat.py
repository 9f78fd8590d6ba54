"""``lora-inspect compat``: which programs read a network, and how."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from lorapipe_engine.command.tool import show, tool_command

if TYPE_CHECKING:
    from lorapipe_engine.files.tensorfile import WeightFile
    from lorapipe_inspect.inputs import Input

EXAMPLES = """
lora-inspect compat mina.safetensors
lora-inspect compat run/ --json
"""


@tool_command("lora-inspect compat", examples=EXAMPLES)
@click.argument("inputs", nargs=-1, metavar="[FILE]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per file.")
def command(inputs: tuple[str, ...], as_json: bool) -> int:
    """Tell which programs read a network, by its key names, algorithms and number types.

    "yes", "no", or "in part", each with the reason; what is said is true of current versions. Exit code 1 if no program
    reads the whole file. FILE are files, folders, or - for standard input.
    """
    from lorapipe_engine.command.text import printable
    from lorapipe_inspect.inputs import each_file
    from lorapipe_inspect.measure.programs import examine, facts_of

    def work(one: Input, file: WeightFile) -> bool:
        facts = facts_of(file)
        answers = examine(facts)
        if as_json:
            programs = {
                name: {"reads": answer.reads, "why": list(answer.why)} for name, answer in answers.items()
            }
            click.echo(json.dumps({"file": one.name, **facts.as_record(), "programs": programs}))
        else:
            show(f"{printable(one.name)}: {facts.in_words()}")
            for name, answer in answers.items():
                show(f"  {name:<22}{answer.reads:<9}{'; '.join(answer.why)}")
        return any(answer.reads == "yes" for answer in answers.values())

    return each_file(inputs, work)
