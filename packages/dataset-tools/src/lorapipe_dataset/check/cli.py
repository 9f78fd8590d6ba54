"""``lora-check``: a dataset in, its report out. ``lora-check buckets`` is a command of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from lorapipe_dataset.check.settings import FOREIGN, MODES, ORDER, EditSettings, ListSettings
from lorapipe_engine.command.foreign import foreign_notes, foreign_options
from lorapipe_engine.command.modes import mode_options, read_mode
from lorapipe_engine.command.tool import ToolCommand, show, tool_command
from lorapipe_engine.errors import ConfigError

EXAMPLES = """
lora-check dataset/
lora-check dataset/ --kind character --trigger "shiina mayuri" --resolution 768 --html report.html
lora-check dataset/ --tags selected_tags.csv --json
lora-check downloads/ --recursive -o report.html
lora-check dataset/ --fix orphan-caption --fix duplicate-tag --dry-run
lora-check dataset/ --undo
lora-check --edit dataset/ --tags selected_tags.csv
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
@mode_options(*MODES, order=ORDER)
@foreign_options(FOREIGN)
def lora_check(inputs: tuple[str, ...], **flags: Any) -> int:
    """Check a dataset: files, captions, tags, pictures, copies, buckets.

    DIR are datasets (folders N_concept), folders of pictures, or pictures; without any, paths are read from standard
    input. Each finding has a severity and a way to mend it; the exit status is 1 if there are errors.
    """
    chosen = read_mode(MODES, flags)
    foreign_notes(FOREIGN)
    if chosen[ListSettings].rules:
        if inputs:
            raise ConfigError(f"--rules lists the rules and checks nothing: leave out {inputs[0]}")
        return print_rules()
    if chosen[EditSettings].edit:
        from lorapipe_dataset.check.edit.run import edit

        return edit(inputs, chosen)
    from lorapipe_dataset.check.options import Options
    from lorapipe_dataset.check.run import run

    return run(Options.of(inputs, chosen))


def print_rules() -> int:
    """The rules with severity and cure; fixable ones have a star."""
    from lorapipe_dataset.check.rules import RULES

    for rule in RULES.values():
        show(f"{rule.severity:<7}  {rule.id}{'*' if rule.fixable else ''}: {rule.title}; {rule.fix}")
    return 0


def main() -> None:
    """Entry point of ``lora-check``."""
    lora_check.main()
