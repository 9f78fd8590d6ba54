"""``lora-inspect meta``: read metadata, count tags, and write a changed copy without reading a tensor."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from lorapipe_engine.command.modes import Mode, flag, mode_options, read_mode
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


@dataclass(frozen=True, kw_only=True)
class FileSettings:
    """What is read"""

    recursive: bool = flag(False, "Look into folders' folders too.", "-r", "--recursive")


@dataclass(frozen=True, kw_only=True)
class ShowSettings:
    """Show metadata"""

    more_keys: tuple[str, ...] = flag((), "Show this entry; may be repeated.", "--key", metavar="KEY")
    tags: bool = flag(False, "How often each tag was trained, over all folders.")
    top: int = flag(20, "Tags to show; 0 for all.", min=0, needs="tags")
    as_json: bool = flag(False, "Print one JSON object per file, tables inside decoded.", "--json")


@dataclass(frozen=True, kw_only=True)
class EditSettings:
    """Write a changed copy"""

    setting: tuple[str, ...] = flag((), "Change or add an entry.", "--set", metavar="KEY=VALUE")
    unset: tuple[str, ...] = flag(
        (), "Leave an entry out; 'ss_dataset*' for several.", metavar="KEY", needs="strip=False"
    )
    strip: bool = flag(False, "Leave all entries out, but for those of --set.")
    output: str | None = flag(
        None,
        "The new file, folder for several (with the folders they were in), or - for stdout.",
        "-o",
        "--output",
        metavar="OUT",
    )
    force: bool = flag(False, "Replace OUT; without -o, change the file itself.")
    dry_run: bool = flag(False, "Tell how many entries would change, write nothing.", "-n", "--dry-run")


def _is_edit(flags: Mapping[str, Any]) -> bool:
    return any(flags.get(name) for name in ("setting", "unset", "strip"))


MODES = (
    Mode("showing metadata", (FileSettings, ShowSettings)),
    Mode("--set, --unset or --strip", (FileSettings, EditSettings), by=_is_edit),
)


@tool_command("lora-inspect meta", examples=EXAMPLES)
@click.argument("words", nargs=-1, metavar="[FILE]... [KEY]...")
@mode_options(*MODES, order=(FileSettings,))
def command(words: tuple[str, ...], **flags: Any) -> int:
    """Show the metadata of weight files, or write copies with other metadata.

    FILE are files, folders, or - for standard input (a weight file, or a list of paths). A KEY is shown whole, tables
    as indented JSON. Without KEY all entries are listed, long ones cut.

    --set, --unset and --strip copy the tensors' bytes as they are into a new file, so hashes of the data stay valid;
    sshs_legacy_hash, which depends on the metadata, is computed anew. The paths of new files go to stdout.
    """
    chosen = read_mode(MODES, flags)
    from lorapipe_inspect.inputs import find_inputs

    files, keys = split_words(words)
    edit, show, recursive = chosen[EditSettings], chosen[ShowSettings], chosen[FileSettings].recursive
    if edit in chosen.parts:
        if keys:
            raise ConfigError("a file is either shown or changed: leave out KEY")
        from lorapipe_inspect.measure.meta_edit import Changes, change_files

        changes = Changes.parse(edit.setting, edit.unset, strip=edit.strip)
        return change_files(
            files, changes, edit.output, force=edit.force, recursive=recursive, dry_run=edit.dry_run
        )
    keys += show.more_keys
    if keys and show.tags:
        raise ConfigError("--tags shows tags only: leave out KEY")
    inputs = list(find_inputs(files, recursive=recursive))
    return show_files(inputs, keys, tags=show.tags, top=show.top, as_json=show.as_json)


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


def show_files(inputs: Sequence[Input], keys: Sequence[str], *, tags: bool, top: int, as_json: bool) -> int:
    """Print what was asked for of every file; the exit status: 1 where a key is missing."""
    from lorapipe_inspect.inputs import work_through
    from lorapipe_inspect.tell.meta import key_record, listing, record, tag_lines, tag_record, value_text

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
            click.echo(json.dumps({"path": one.name, "file": one.name, **chosen}))
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
