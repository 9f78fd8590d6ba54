"""``lora-repeats``: pictures in, a dataset that says how often each comes out."""

from __future__ import annotations

from typing import Any

import click

from lorapipe_dataset.bucketing import bucket_options, read_options
from lorapipe_engine.command.tool import tool_command

EXAMPLES = """
lora-repeats pictures/
lora-repeats pictures/ -o dataset/ --kind character
lora-tag pictures/ | lora-clean --trigger "shiina mayuri" | lora-repeats -o dataset/ --kind character
lora-repeats nekochan/ maid/ -o dataset/ --per-epoch 400 --weight nekochan=2
lora-repeats dataset/ --rename --kind style
lora-repeats pictures/ -o dataset.toml --repeats 10 --repeats maid=6
"""


@tool_command("lora-repeats", examples=EXAMPLES)
@click.argument("inputs", nargs=-1, metavar="[IN]...")
@click.option(
    "-o", "--output", metavar="OUT", help="Folder to build, or a .toml file that names the folders."
)
@click.option(
    "--kind",
    type=click.Choice(["character", "style", "concept"]),
    default="concept",
    show_default=True,
    help="What is trained: sets the pictures of an epoch (400, 500, 400) and of the whole run.",
)
@click.option(
    "--per-epoch", type=click.IntRange(1), metavar="N", help="Pictures of an epoch, repeats counted."
)
@click.option(
    "--by",
    type=click.Choice(["equal", "sqrt", "weight"]),
    help="Share of each concept: equal, by the root of its pictures, by weights.  [default: equal]",
)
@click.option("--weight", multiple=True, metavar="NAME=W", help="Weight of a concept (or folders {1.5}name).")
@click.option(
    "--repeats", multiple=True, metavar="[NAME=]N", help="Fix the repeats, of all or of one concept."
)
@click.option(
    "--concept",
    "--name",
    "--concept-name",
    "concept",
    metavar="NAME",
    help="Put all pictures into one concept.",
)
@click.option("-r", "--recursive", is_flag=True, help="Take folders inside a concept's folder too.")
@click.option(
    "--caption-extension",
    default=".txt",
    show_default=True,
    help="Suffix of captions (.caption is tried too).",
)
@click.option(
    "--link",
    type=click.Choice(["hard", "symlink"]),
    help="Link the pictures instead of copying them; captions are copied.",
)
@click.option("--move", is_flag=True, help="Move pictures and captions instead of copying them.")
@click.option("--rename", is_flag=True, help="Rename the folders where they are, no -o.")
@bucket_options
@click.option(
    "--gradient-accumulation-steps",
    type=click.IntRange(1),
    default=1,
    help="Batches for one step.  [default: 1]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as one JSON object.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be done, write nothing.")
@click.option("--force", is_flag=True, help="Add to a folder that has something in it; replace a .toml.")
def lora_repeats(inputs: tuple[str, ...], link: str | None, move: bool, **flags: Any) -> int:
    """Choose how often each concept's pictures come in an epoch, and build the dataset.

    IN are pictures, folders of pictures, or folders of such folders; without any, paths or records are read from
    standard input. Each folder is a concept, named after it (6_maid is maid); records with a trigger, as lora-clean
    --trigger gives, are a concept of that name. Pictures take their captions along.
    Without -o the numbers are printed; with it the path of the dataset goes to stdout.
    """
    from lorapipe_dataset.repeats.run import Options, run

    if link and move:
        raise click.UsageError("--link and --move exclude each other")
    data = read_options(flags)
    return run(Options(inputs=inputs, mode="move" if move else link or "copy", data=data, **flags))  # type: ignore[arg-type]


def main() -> None:
    """Entry point of ``lora-repeats``."""
    lora_repeats.main()
