"""``lora-inspect zeros``: zeros, dead modules, subnormals, NaN and infinities, and which of them matter."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from lorapipe_engine.command.tool import say, show, tool_command
from lorapipe_inspect.arguments import file_arguments

if TYPE_CHECKING:
    from lorapipe_engine.files.tensorfile import WeightFile
    from lorapipe_inspect.inputs import Input

EXAMPLES = """
lora-inspect zeros mina.safetensors
lora-inspect zeros run/ --json
ls *.safetensors | lora-inspect zeros | lora-resize --new-rank 32 -o small/
lora-resize mina.safetensors --new-rank 32 -o - | lora-inspect zeros -
"""


@tool_command("lora-inspect zeros", examples=EXAMPLES)
@file_arguments
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per file.")
@click.option(
    "--strict", is_flag=True, help="Also fail if over 0.1 % of the trained values are exactly zero."
)
@click.option(
    "--all", "show_all", is_flag=True, help="Name every dead module and NaN, not only the first ones."
)
def command(inputs: tuple[str, ...], recursive: bool, as_json: bool, strict: bool, show_all: bool) -> int:
    """Count zeros, dead modules, subnormals, NaN and infinities, and tell what they mean.

    FILE are files, folders, or - for standard input (a network, or a list of paths); without any, paths are read from
    standard input. The status is 1 if a module is dead that should not be, or a value NaN or infinite.

    In the middle of a pipe, with paths from standard input and standard output not a terminal, the paths of all files
    that could be read go on to standard output, one a line, and the report to standard error. --json writes its
    objects to standard output; the next tool reads their "file".
    """
    from lorapipe_inspect.inputs import each_file
    from lorapipe_inspect.measure.findings import examine
    from lorapipe_inspect.tell.zeros import report

    def work(one: Input, file: WeightFile) -> bool:
        findings = examine(file, one.name)
        if as_json:
            click.echo(json.dumps(findings.as_record(strict=strict)))
        else:
            _tell(one, report(findings, strict=strict, most=None if show_all else 8))
        return not findings.problems(strict=strict)

    return each_file(inputs, work, recursive=recursive)


def _tell(one: Input, lines: list[str]) -> None:
    from lorapipe_engine.command.records import format_path, format_record

    if not one.listed or one.record is None or sys.stdout.isatty():
        show(*lines)
        return
    for line in lines:
        say(line)
    # What came as a bare path goes on as one.
    passed = format_record(one.record) if one.record.data else format_path(one.record.path)
    sys.stdout.buffer.write(passed.encode("utf-8", "surrogateescape") + b"\n")
    sys.stdout.buffer.flush()
