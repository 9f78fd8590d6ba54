"""``lora-inspect meta``: read metadata, count tags, and write a changed copy without reading a tensor."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from lorapipe_engine.command.tool import show, tool_command
from lorapipe_engine.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lorapipe_inspect.inputs import Input

EXAMPLES = """
lora-inspect meta mina.safetensors
lora-inspect meta mina.safetensors ss_network_dim
lora-inspect meta mina.safetensors --tags --top 50
lora-inspect meta mina.safetensors --set ss_output_name=mina --unset 'ss_dataset*' -o clean.safetensors
lora-inspect meta run/ --strip -o stripped/
"""
LONGEST = 160


@tool_command("lora-inspect meta", examples=EXAMPLES)
@click.argument("words", nargs=-1, metavar="[FILE]... [KEY]...")
@click.option("--key", "more_keys", multiple=True, metavar="KEY", help="Show this entry; may be repeated.")
@click.option("--tags", is_flag=True, help="How often each tag was trained, over all folders.")
@click.option("--top", type=click.IntRange(0), default=20, show_default=True, help="Tags to show; 0 for all.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per file, tables inside decoded."
)
@click.option("--set", "setting", multiple=True, metavar="KEY=VALUE", help="Change or add an entry.")
@click.option("--unset", multiple=True, metavar="KEY", help="Leave an entry out; 'ss_dataset*' for several.")
@click.option("--strip", is_flag=True, help="Leave all entries out, but for those of --set.")
@click.option("-o", "--output", metavar="OUT", help="The new file, folder for several, or - for stdout.")
@click.option("--force", is_flag=True, help="Replace OUT; without -o, change the file itself.")
def command(
    words: tuple[str, ...],
    more_keys: tuple[str, ...],
    tags: bool,
    top: int,
    as_json: bool,
    setting: tuple[str, ...],
    unset: tuple[str, ...],
    strip: bool,
    output: str | None,
    force: bool,
) -> int:
    """Show the metadata of weight files, or write copies with other metadata.

    FILE are files, folders, or - for standard input (a weight file, or a list of paths). A KEY is shown whole, tables
    as indented JSON. Without KEY all entries are listed, long ones cut.

    --set, --unset and --strip copy the tensors' bytes as they are into a new file, so hashes of the data stay valid;
    sshs_legacy_hash, which depends on the metadata, is computed anew. The paths of new files go to stdout.
    """
    files, keys = split_words(words)
    keys += more_keys
    if setting or unset or strip:
        if keys or tags or as_json:
            raise ConfigError("a file is either shown or changed: leave out KEY, --tags and --json")
        from lorapipe_inspect.measure.meta_edit import Changes, change_files

        changes = Changes.parse(setting, unset, strip=strip)
        return change_files(files, changes, output, force=force)
    if output is not None or force:
        raise ConfigError("nothing to change: give --set KEY=VALUE, --unset KEY or --strip")
    if keys and tags:
        raise ConfigError("--tags shows tags only: leave out KEY")
    return show_files(files, keys, tags=tags, top=top, as_json=as_json)


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files and keys: a key is a word behind all files that names nothing on the disk and does not look as if it
    should.
    """
    from pathlib import Path

    files = list(words)
    keys: list[str] = []
    suffixes = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
    while files:
        word = files[-1]
        if (
            word == "-"
            or "/" in word
            or "\\" in word
            or word.lower().endswith(suffixes)
            or Path(word).exists()
        ):
            break
        keys.insert(0, files.pop())
    return files, keys


def show_files(files: Sequence[str], keys: Sequence[str], *, tags: bool, top: int, as_json: bool) -> int:
    """Print what was asked for of every file; the exit status: 1 where a key is missing."""
    from lorapipe_inspect.inputs import find_inputs, work_through
    from lorapipe_inspect.tell.meta import key_record, listing, record, tag_lines, tag_record, value_text

    inputs = list(find_inputs(files))

    def work(one: Input) -> bool:
        from lorapipe_engine.command.text import printable

        with one.open() as file:
            metadata = file.metadata
        if as_json:
            chosen = (
                tag_record(metadata, top)
                if tags
                else key_record(one.name, metadata, keys)
                if keys
                else record(metadata)
            )
            click.echo(json.dumps({"file": one.name, **chosen}))
            return True
        if keys:
            values = key_record(one.name, metadata, keys)["metadata"]
            for key in keys:
                label = f"{printable(one.name)}: " if len(inputs) > 1 else ""
                label += f"{printable(key)}: " if len(keys) > 1 else ""
                # click would take escape sequences out of what is no terminal's.
                click.echo(label + value_text(values[key], plain=not sys.stdout.isatty()), color=True)
            return True
        lines = tag_lines(metadata, top) if tags else listing(metadata, LONGEST)
        show(*[printable(one.name), *lines])
        return True

    return work_through(inputs, work)
