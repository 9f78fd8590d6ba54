"""A tool with several commands in it, as ``lora-inspect zeros``: each is a module of its own, imported when called."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import click

from lorapipe_engine.command.tool import ToolCommand, tool_command


class ToolGroup(ToolCommand):
    """The tool itself: lists its commands and hands over to the one that was named."""

    commands: Mapping[str, tuple[str, str]]

    def main(self, args: Sequence[str] | None = None, **extra: Any) -> Any:  # type: ignore[override]
        """Run the command that the first word names; without one, show the help."""
        words = list(sys.argv[1:] if args is None else args)
        if words and words[0] in self.commands:
            command = self.load(words[0])
            if args is None:
                # The command reads sys.argv itself, for click expands * on Windows only then.
                sys.argv = [f"{sys.argv[0]} {words[0]}", *words[1:]]
                return command.main(prog_name=command.name, **extra)
            return command.main(words[1:], prog_name=command.name, **extra)
        return super().main(words or ["--help"], **extra)

    def load(self, name: str) -> ToolCommand:
        """The command called ``name``."""
        module, function = self.commands[name][0].split(":")
        command = getattr(import_module(module), function)
        if not isinstance(command, ToolCommand):
            raise TypeError(f"{module}:{function} is not a tool command")
        return command

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self.commands.items()])


def tool_group(name: str, commands: Mapping[str, tuple[str, str]], *, about: str, examples: str) -> ToolGroup:
    """The tool ``name`` with ``commands``: name -> ("module:function", what it does in a line)."""

    def complain(command: str | None, rest: tuple[str, ...]) -> None:
        del rest
        from difflib import get_close_matches

        close = get_close_matches(command or "", commands, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(commands)}"
        raise click.UsageError(f"no command {command or ''}, {hint}")

    complain.__doc__ = about
    arguments = click.argument("command", required=False)(
        click.argument("rest", nargs=-1, type=click.UNPROCESSED, metavar="...")(complain)
    )
    group = tool_command(name, examples=examples, cls=ToolGroup)(arguments)
    if not isinstance(group, ToolGroup):
        raise TypeError(name)
    group.commands = commands
    return group
