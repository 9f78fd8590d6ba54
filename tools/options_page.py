"""Writes docs/options.md: every option of every command, as the commands declare them.

python tools/options_page.py
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import click

from lorapipe_engine.command.group import ToolGroup
from lorapipe_engine.command.shared import SHARED, shown_names
from lorapipe_engine.command.tool import ToolCommand

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/options.md"
HEAD = """\
# Options

Every option of every command; `--help` prints the same. Dashes and underscores are alike. All commands have
`-v`, `--verbose` (show where an error came from), `-q`, `--quiet` (no progress, no talk), `--version` and `-h`,
`--help`. An option that has no use beside the others is refused: the headings tell which options belong together.
"""
NEXT = "**Next:** [train](training.md), or [the whole way](guide.md).\n"


def commands() -> Iterator[ToolCommand]:
    """All commands of all packages, subcommands too."""
    for path in sorted(ROOT.glob("packages/*/pyproject.toml")):
        scripts = tomllib.loads(path.read_text(encoding="utf-8"))["project"].get("scripts", {})
        for target in scripts.values():
            module = import_module(target.partition(":")[0])
            (command,) = (one for one in vars(module).values() if isinstance(one, ToolCommand))
            if isinstance(command, ToolGroup):
                yield from map(command.load, command.commands)
            else:
                yield command
    yield import_module("lorapipe_dataset.check.buckets_cli").command


def options_of(command: ToolCommand) -> list[click.Option]:
    """The options that the command's help shows, without those that all commands have."""
    common = ("verbose", "quiet", "version", "help")
    return [
        param
        for param in command.params
        if isinstance(param, click.Option) and not param.hidden and param.name not in common
    ]


def page() -> str:
    """The text of the page."""
    lines = [HEAD, *_shared()]
    for command in commands():
        lines += [f"## {command.name}", ""]
        for title, options in _sections(command).items():
            lines += [f"### {title}", ""] if title else []
            lines += ["| option | |", "| --- | --- |"]
            lines += [_row(command, option) for option in options]
            lines.append("")
    return "\n".join([*lines, NEXT])


def _shared() -> list[str]:
    """The table of the options that tools share."""
    rows = [f"| {', '.join(f'`{name}`' for name in row.names)} | {row.meaning} |" for row in SHARED]
    told = "Options that several tools have mean one thing, and each tool that has one takes all its names:"
    return [told, "", "| option | |", "| --- | --- |", *rows, ""]


def _sections(command: ToolCommand) -> dict[str, list[click.Option]]:
    sections: dict[str, list[click.Option]] = {}
    for option in options_of(command):
        sections.setdefault(getattr(option, "section", ""), []).append(option)
    return sections


def _row(command: ToolCommand, option: click.Option) -> str:
    record = option.get_help_record(click.Context(command))
    assert record is not None  # hidden options are left out
    shown = shown_names(record[0], option), record[1]
    names, text = (" ".join(part.split()).replace("|", "\\|") for part in shown)
    return f"| `{names}` | {text.replace('*', chr(92) + '*')} |"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
