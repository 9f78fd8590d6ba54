"""Options of other programs that a tool knows and has no use for.

Most are refused with what to use in their place. Those that only ask for what happens anyway are accepted with a note,
and so are those that stand for options of the tool, so that a command line or a file made for sd-scripts runs. A value
that means "off" is always accepted in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from lorapipe_engine.command.configuration import Item, is_nothing, join_items
from lorapipe_engine.command.options import WordsOption
from lorapipe_engine.errors import ConfigError

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Foreign:
    """An option of another program: ``why`` it is not here; whether it is a ``flag``, whether it is ignored with a note
    instead of refused, and the values besides nothing and false that mean ``off``. ``means`` makes the tool's own
    options from its value, where there are such."""

    why: str
    flag: bool = False
    is_ignored: bool = False
    off: tuple[Any, ...] = ()
    means: Callable[[Any], Options] | None = None


def refused(why: str, *names: str, flag: bool = False, off: tuple[Any, ...] = ()) -> dict[str, Foreign]:
    """Rows of options that are refused; ``why`` names what to use in their place."""
    return {name: Foreign(why, flag=flag, off=off) for name in names}


def ignored(why: str, *names: str, flag: bool = False, off: tuple[Any, ...] = ()) -> dict[str, Foreign]:
    """Rows of options that are accepted with a note; ``why`` says why nothing has to be done."""
    return {name: Foreign(why, flag=flag, is_ignored=True, off=off) for name in names}


def obeyed(
    why: str, name: str, means: Callable[[Any], Options], *, flag: bool = False, off: tuple[Any, ...] = ()
) -> dict[str, Foreign]:
    """The row of an option that stands for others here; ``why`` names them in the note."""
    return {name: Foreign(why, flag=flag, off=off, means=means)}


def items_of(own: str, *names: str) -> dict[str, Foreign]:
    """Rows of options that each give one value of the tool's option ``own``, in their order."""
    rows: dict[str, Foreign] = {}
    for number, name in enumerate(names):
        rows |= obeyed(f"taken as value {number + 1} of {own}", name, _item(own, number, name))
    return rows


def _item(own: str, number: int, name: str) -> Callable[[Any], Options]:
    return lambda value: {own: Item(number, value, name)}


class ForeignOptions:
    """Judges the options of ``table``; ``notes`` tell those that do nothing, and those that stand for others."""

    def __init__(self, table: Mapping[str, Foreign]) -> None:
        self.table = table
        self._unneeded: dict[str, list[str]] = {}
        self._meant: list[str] = []

    def __call__(self, name: str, value: Any, place: str) -> Options | None:
        """The tool's options that the option means, most often none; None where it is not one of the table.

        Raises ConfigError for one that is refused.
        """
        row = self.table.get(name)
        if row is None:
            return None
        if _is_off(row, value):
            return {}
        where = f"{place}: " if place else ""
        if row.means is not None:
            try:
                options = row.means(value)
            except ConfigError as error:
                raise ConfigError(f"{where}{name}: {error}") from None
            self._meant.append(f"{name}: {row.why}")
            return options
        if not row.is_ignored:
            raise ConfigError(f"{where}{name}: {row.why}")
        names = self._unneeded.setdefault(row.why, [])
        if name not in names:
            names.append(name)
        return {}

    @property
    def notes(self) -> list[str]:
        """A line for each reason, with the options that it holds for, and one for each that stands for others."""
        unneeded = [
            f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} not needed: {why}"
            for why, names in self._unneeded.items()
        ]
        return [*unneeded, *dict.fromkeys(self._meant)]


def _is_off(row: Foreign, value: Any) -> bool:
    """Whether a value leaves the option off: as it is, or as the text that a GUI writes for it."""
    text = str(value).lower()
    if is_nothing(value) or text == "none" or (row.flag and text in ("0", "false")):
        return True
    return value in row.off or text in map(str, row.off)


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


def given_options(options: ForeignOptions, flags: Options) -> dict[str, Any]:
    """The ``flags`` of the command line that is being run with what its options of other programs mean. Raises
    ConfigError for one that is refused, or that means another value than a flag gives."""
    meant = dict(flags)
    items: dict[str, list[Item]] = {}
    for name, value in click.get_current_context().meta.get(__name__, []):
        number = value[0] if isinstance(value, tuple) and len(value) == 1 else value
        number = int(number) if isinstance(number, str) and number.isdigit() else number
        for own, wanted in (options(name, number, "") or {}).items():
            if meant.get(own) not in (None, (), wanted):
                raise ConfigError(f"{name} and {own} {meant[own]} exclude each other; leave one of them out")
            if isinstance(wanted, Item):
                items.setdefault(own, []).append(wanted)
            else:
                meant[own] = wanted
    return meant | {own: tuple(join_items(own, values)) for own, values in items.items()}


def foreign_notes(table: Mapping[str, Foreign]) -> list[str]:
    """Notes on the options of ``table`` on the command line. Raises ConfigError for one that is refused."""
    options = ForeignOptions(table)
    given_options(options, {})
    return options.notes
