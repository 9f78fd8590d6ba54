"""``lora-check``: a dataset in, its report out. ``lora-check buckets`` is a command of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from lorapipe_dataset.bucketing import bucket_options, read_options
from lorapipe_engine.command.tool import ToolCommand, show, tool_command

EXAMPLES = """
lora-check dataset/
lora-check dataset/ --kind character --trigger "shiina mayuri" --resolution 768 --html report.html
lora-check dataset/ --tags selected_tags.csv --json
lora-check dataset/ --fix orphan-caption --fix duplicate-tag --dry-run
lora-check dataset/ --undo
lora-check buckets dataset/ --resolution 768,768 --json
"""
PATH = click.Path(path_type=Path)


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
@click.option(
    "--kind",
    type=click.Choice(["character", "style", "concept"]),
    help="What is trained; amounts are judged by it, and other people are told for a character.",
)
@click.option("--trigger", metavar="WORD", help="Word that every caption should have.  [default: guessed]")
@click.option(
    "--keep-tokens",
    type=click.IntRange(0),
    metavar="N",
    help="Tags that stay at the front.  [default: 1 with --trigger]",
)
@click.option(
    "--tags", "tags_file", type=PATH, metavar="CSV", help="Known tags: a tagger's selected_tags.csv."
)
@click.option(
    "--aliases", type=PATH, metavar="FILE", help="Old and new names of tags, a line 'old,new' each."
)
@click.option(
    "--tokenizer-dir", type=PATH, metavar="DIR", help="CLIP's vocab.json and merges.txt, to count tokens."
)
@click.option(
    "--max-token-length",
    type=click.IntRange(1),
    default=225,
    show_default=True,
    help="Tokens that are read of a caption.",
)
@click.option("--caption-extension", default=".txt", show_default=True, help="Suffix of captions.")
@click.option(
    "--distance",
    type=click.IntRange(0, 16),
    default=6,
    show_default=True,
    help="Bits of 64 in which near-duplicates may differ.",
)
@bucket_options
@click.option("--rules", "list_rules", is_flag=True, help="List the rules and stop.")
@click.option("--only", multiple=True, metavar="RULE", help="Try this rule only (may be repeated).")
@click.option("--ignore", multiple=True, metavar="RULE", help="Leave this rule out (may be repeated).")
@click.option(
    "--look/--no-look", default=True, help="Decode the pictures, or read headers only.  [default: look]"
)
@click.option("--all", "whole", is_flag=True, help="Show every case, not the first few.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
@click.option(
    "--html", type=PATH, metavar="FILE", help="Write a page to browse the pictures by tag and finding."
)
@click.option(
    "--fail-on",
    type=click.Choice(["error", "warning", "info"]),
    default="error",
    show_default=True,
    help="Exit with 1 for findings of this severity or a graver one.",
)
@click.option("--fix", multiple=True, metavar="RULE", help="Mend what this rule finds (may be repeated).")
@click.option("--undo", is_flag=True, help="Take your last --fix back; -n shows what goes.")
@click.option("--run", metavar="RUN", help="With --undo: take this run back, whoever made it.")
@click.option("-n", "--dry-run", is_flag=True, help="With --fix or --undo: say what would be done.")
@click.option("--force", is_flag=True, help="Replace the page if it exists.")
def lora_check(inputs: tuple[str, ...], list_rules: bool, **flags: Any) -> int:
    """Check a dataset: files, captions, tags, pictures, copies, buckets.

    DIR are datasets (folders N_concept), folders of pictures, or pictures; without any, paths are read from standard
    input. Each finding has a severity and a way to mend it; the exit status is 1 if there are errors.
    """
    if list_rules:
        return print_rules()
    from lorapipe_dataset.check.options import Options
    from lorapipe_dataset.check.run import run

    return run(Options(inputs=inputs, data=read_options(flags), **flags))


def print_rules() -> int:
    """The rules with severity and cure; fixable ones have a star."""
    from lorapipe_dataset.check.rules import RULES

    for rule in RULES.values():
        show(f"{rule.severity:<7}  {rule.id}{'*' if rule.fixable else ''}: {rule.title}; {rule.fix}")
    return 0


def main() -> None:
    """Entry point of ``lora-check``."""
    lora_check.main()
