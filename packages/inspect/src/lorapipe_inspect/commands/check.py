"""``lora-inspect check``: everything at once, with a verdict."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from lorapipe_engine.command.tool import show, tool_command
from lorapipe_inspect.arguments import file_arguments

if TYPE_CHECKING:
    from lorapipe_inspect.inputs import Input

EXAMPLES = """
lora-inspect check mina.safetensors
lora-inspect check run/ --strict
lora-inspect check downloads/*.safetensors --json > report.jsonl
"""


@tool_command("lora-inspect check", examples=EXAMPLES)
@file_arguments
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per file.")
@click.option(
    "--strict", is_flag=True, help="Notes are problems too, and over 0.1 % of values flushed to zero."
)
@click.option("--all", "show_all", is_flag=True, help="Name everything, not only the first of each kind.")
def command(inputs: tuple[str, ...], recursive: bool, as_json: bool, strict: bool, show_all: bool) -> int:
    """Check networks in every way that needs no base model, and give a verdict.

    Read are the container, the modules (complete, factors that fit each other, known names), ranks and alphas against
    the metadata, zeros, NaN and infinities (as "zeros" does), and the hash that the metadata have of the data. FILE are
    files, folders, or - for standard input (a network, or a list of paths). The status is 1 if there is a problem.
    """
    from lorapipe_inspect.inputs import each_input
    from lorapipe_inspect.measure.checks import check_file
    from lorapipe_inspect.tell.checks import check_lines

    def work(one: Input) -> bool:
        result = check_file(one, strict=strict)
        if as_json:
            click.echo(json.dumps(result.as_record()))
        else:
            show(*check_lines(result, most=None if show_all else 8))
        return not result.problems

    return each_input(inputs, work, recursive=recursive)
