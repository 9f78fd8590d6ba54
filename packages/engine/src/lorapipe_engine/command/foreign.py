"""Options of other programs that a tool knows and has no use for.

Most are refused with what to use in their place. Those that only ask for what happens anyway are accepted with a note,
so that a command line or a file made for sd-scripts runs. A value that means "off" is always accepted in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import click

from lorapipe_engine.command.options import WordsOption
from lorapipe_engine.errors import ConfigError


@dataclass(frozen=True)
class Foreign:
    """An option of another program: ``why`` it is not here; whether it is a ``flag``, whether it is ignored with a note
    instead of refused, and the values besides nothing and false that mean ``off``."""

    why: str
    flag: bool = False
    is_ignored: bool = False
    off: tuple[Any, ...] = ()


def refused(why: str, *names: str, flag: bool = False, off: tuple[Any, ...] = ()) -> dict[str, Foreign]:
    """Rows of options that are refused; ``why`` names what to use in their place."""
    return {name: Foreign(why, flag=flag, off=off) for name in names}


def ignored(why: str, *names: str, flag: bool = False) -> dict[str, Foreign]:
    """Rows of options that are accepted with a note; ``why`` says why nothing has to be done."""
    return {name: Foreign(why, flag=flag, is_ignored=True) for name in names}


@dataclass
class ForeignOptions:
    """Judges the options of ``table``; ``notes`` are those that were accepted and do nothing."""

    table: Mapping[str, Foreign]
    notes: list[str] = field(default_factory=list)

    def __call__(self, name: str, value: Any, place: str) -> bool:
        """Whether the option is one of the table. Raises ConfigError for one that is refused."""
        row = self.table.get(name)
        if row is None:
            return False
        if value in (None, False, "", (), *row.off) or value == []:
            return True
        if not row.is_ignored:
            where = f"{place}: " if place else ""
            raise ConfigError(f"{where}{name}: {row.why}")
        note = f"{name} is not needed: {row.why}"
        if note not in self.notes:
            self.notes.append(note)
        return True


def foreign_options(table: Mapping[str, Foreign]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds the options to a command, unseen in its help; :func:`given_options` reads them."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for name, row in reversed(list(table.items())):
            settings: dict[str, Any] = {"hidden": True, "expose_value": False, "callback": _remember}
            if row.flag:
                function = click.option(f"--{name}", name, is_flag=True, default=None, **settings)(function)
            elif row.is_ignored:  # one value, so that no word after it is passed over too
                function = click.option(f"--{name}", name, multiple=True, **settings)(function)
            else:
                function = click.option(f"--{name}", name, cls=WordsOption, multiple=True, **settings)(
                    function
                )
        return function

    return decorate


def _remember(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value:
        context.meta.setdefault(__name__, []).append((parameter.name, value))


def given_options(options: ForeignOptions) -> None:
    """Judge the options of the command line that is being run. Raises ConfigError for one that is refused."""
    for name, value in click.get_current_context().meta.get(__name__, []):
        number = value[0] if isinstance(value, tuple) and len(value) == 1 else value
        options(name, int(number) if isinstance(number, str) and number.isdigit() else number, "")


def foreign_notes(table: Mapping[str, Foreign]) -> list[str]:
    """Notes on the options of ``table`` on the command line. Raises ConfigError for one that is refused."""
    options = ForeignOptions(table)
    given_options(options)
    return options.notes
