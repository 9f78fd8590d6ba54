"""``lora-check``: a dataset in, its report out. ``lora-check buckets`` is a command of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from lorapipe_dataset.bucketing import bucket_options, read_options
from lorapipe_engine.command import ToolCommand, tool_command

EXAMPLES = """
lora-check dataset/
lora-check dataset/ --kind character --trigger "shiina mayuri" --resolution 768 --html report.html
lora-check dataset/ --tags selected_tags.csv --json
lora-check dataset/ --fix orphan-caption --fix duplicate-tag --dry-run
lora-check dataset/ --undo
lora-check buckets dataset/ --resolution 768,768 --json
"""


class CheckCommand(ToolCommand):
    """The check itself; a first word ``buckets`` names the other command (a folder of that name is ./buckets)."""

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> Any:  # type: ignore[override]
        """Run the command that the first word names, else the check."""
        words = list(sys.argv[1:] if args is None else args)
        if words[:1] != ["buckets"]:
            return super().main(args, **extra)
        from lorapipe_dataset.check.buckets_cli import command

        if args is None:
            # The command reads sys.argv itself, for click expands * on Windows only then.
            sys.argv = [f"{sys.argv[0]} buckets", *words[1:]]
            return command.main(prog_name=command.name, **extra)
        return command.main(words[1:], prog_name=command.name, **extra)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl([("buckets", "The bucket, size and crop of each picture, from headers only.")])


@tool_command("lora-check", examples=EXAMPLES, cls=CheckCommand)
@click.argument("inputs", nargs=-1, metavar="[DIR]...")
@bucket_options
def lora_check(inputs: tuple[str, ...], **flags: Any) -> int:
    """Check a dataset."""
    read_options(flags)
    return 0


def main() -> None:
    """Entry point of ``lora-check``."""
    lora_check.main()
