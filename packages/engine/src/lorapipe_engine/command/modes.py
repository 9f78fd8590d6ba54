"""The modes of a tool: what each can be asked for, and no option of another.

A mode is named with the settings classes that hold its options; a field of such a class is made by :func:`flag`.
``mode_options(*MODES)`` adds the options of all modes to a command, ``read_mode(MODES, flags)`` finds the mode that
the command line asks for and refuses every option that it has no use for:

    @dataclass(frozen=True, kw_only=True)
    class UndoSettings:
        '''Take it back'''
        undo: bool = flag(False, "Take the last run back.")

    MODES = (
        Mode("cleaning", (CleanSettings, OutputSettings)),
        Mode("--undo", (UndoSettings, OutputSettings), by="undo"),
    )

The first line of a class's docstring heads its options in the help.
"""

from __future__ import annotations

import dataclasses
import typing
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from lorapipe_engine.command.options import (
    Facts,
    Field,
    build_settings,
    fields_of,
    in_section,
    metavar_of,
    title_of,
    values_in_file,
)
from lorapipe_engine.errors import ConfigError

Settings = TypeVar("Settings")
Flags = Mapping[str, Any]
_KEY = "lorapipe"


def flag(
    default: Any,
    help: str,  # noqa: A002 - the word that click and argparse use
    *flags: str,
    opposite: str | None = None,
    metavar: str | None = None,
    needs: Sequence[str] | str = (),
    min: float | None = None,  # noqa: A002
    max: float | None = None,  # noqa: A002
    above: float | None = None,
    secret: bool = False,
) -> Any:
    """A field that is an option of a tool. ``flags``: its spellings, by default the field's name with dashes.

    ``opposite``: the flag that turns a switch off. ``min`` and ``max`` are allowed themselves, ``above`` is not.
    ``needs``: the option has a use only where one of these options is given ("trigger") or has one of these values
    ("order=alphabet|length", "order!=keep"). A literal type gives the choices. A ``secret`` is shown nowhere.
    """
    needed = (needs,) if isinstance(needs, str) else tuple(needs)
    facts = Facts(
        help=help,
        dashed=True,
        flags=flags,
        opposite=opposite,
        metavar=metavar,
        needs=needed,
        min=min,
        max=max,
        above=above,
        secret=secret,
    )
    return dataclasses.field(default=default, metadata={_KEY: facts})


@dataclass(frozen=True)
class Mode:
    """One of the things that a tool does. ``name``: what errors call it. ``parts``: the classes of its options.

    ``by`` finds it: the option whose presence asks for it, or a function of all options as they were given; None for
    the mode that is meant where no other is.
    """

    name: str
    parts: tuple[type, ...]
    by: str | Callable[[Flags], bool] | None = None

    def fields(self) -> dict[str, Field]:
        """The options that this mode has, by name."""
        return {field.name: field for part in self.parts for field in fields_of(part)}

    def is_asked_for(self, flags: Flags) -> bool:
        """Whether the command line asks for this mode."""
        if self.by is None:
            return True
        return is_given(flags.get(self.by)) if isinstance(self.by, str) else self.by(flags)


@dataclass(frozen=True)
class Chosen:
    """The mode of a command line and its settings; ``given``: the options that were on the command line."""

    mode: Mode
    parts: tuple[Any, ...]
    given: Collection[str]

    def __getitem__(self, part: type[Settings]) -> Settings:
        """The settings of a class; its defaults where the mode has none of its options."""
        return next((one for one in self.parts if type(one) is part), None) or part()


def is_given(value: Any) -> bool:
    """Whether an option was on the command line; all are None, or empty where they may be repeated, without."""
    return value is not None and value != ()


# -------------------------------------------------------------------------------- the command line


def mode_options(
    *modes: Mode, order: Sequence[type] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds the options of all modes to a command, each once, as raw values for :func:`read_mode`.

    ``order``: the classes as the help shows them; by default those of one mode alone come first. The function keeps the
    modes as its attribute ``modes``.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function.modes = modes  # type: ignore[attr-defined]
        parts = Counter(part for mode in modes for part in dict.fromkeys(mode.parts))
        shown = dict.fromkeys([*order, *sorted(parts, key=lambda part: parts[part])])
        rows = {field.name: (field, part) for part in shown for field in fields_of(part)}
        for field, part in reversed(rows.values()):
            function = in_section(title_of(part), _click_option(field)(function))
        return function

    return decorate


def modes_of(command: click.Command) -> tuple[Mode, ...]:
    """The modes of a command; none if it was not made with :func:`mode_options`."""
    modes: tuple[Mode, ...] = getattr(command.callback, "modes", ())
    return modes


def _click_option(field: Field) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    facts = field.facts
    settings: dict[str, Any] = {
        "default": None,
        "help": facts.help + _shown_default(field),
    }
    names = [*(facts.flags or (f"--{field.name}",)), field.name]
    if field.type is bool:
        settings["is_flag"] = True
        opposite = facts.opposite or (None if facts.dashed else f"no_{field.name}")
        names[0] += f"/--{opposite}" if opposite else ""
    elif field.is_list:
        kind = typing.get_args(field.type)[0]
        settings |= {"multiple": True, "metavar": facts.metavar or metavar_of(field)}
        settings["nargs"] = len(typing.get_args(kind)) or 1
    else:
        choices = f"[{'|'.join(map(str, facts.choices))}]" if facts.choices else None
        settings |= {"type": _click_type(field), "metavar": facts.metavar or choices or metavar_of(field)}
    return click.option(*names, **settings)


def _click_type(field: Field) -> Any:
    facts = field.facts
    if facts.choices:
        return click.Choice([str(choice) for choice in facts.choices])
    if field.type is int and (facts.min is not None or facts.max is not None):
        low, high = (None if bound is None else int(bound) for bound in (facts.min, facts.max))
        return _ShownWhole(low, high)
    if field.type is float and facts.above is not None:
        return _ShownNumber(facts.above, facts.max, min_open=True)
    return str  # numbers are read and checked by the fields


class _ShownWhole(click.IntRange):
    """A range that the help shows. The field reads the value, so that all tools refuse it in the same words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        return value


class _ShownNumber(click.FloatRange):
    """As :class:`_ShownWhole`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        return value


def _shown_default(field: Field) -> str:
    unset = field.default is None or field.default is False or field.default in ("", ())
    if unset or "[default" in field.facts.help:
        return ""
    if field.default is True:
        return f"  [default: {field.facts.flags[0].lstrip('-') if field.facts.dashed else 'yes'}]"
    values = field.default if isinstance(field.default, tuple) else (field.default,)
    shown = ",".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
    return f"  [default: {shown}]"


# -------------------------------------------------------------------------------- from the command line to a mode


def read_mode(modes: Sequence[Mode], flags: Flags, config: str | None = None) -> Chosen:
    """The mode that ``flags`` ask for, with its settings.

    ``config``: the option that names a TOML or JSON file of others, which those on the command line override.

    Raises ConfigError for options of two modes, for an option that the mode or the other options give no use, and for
    values that are out of range; InputError for a file that cannot be read.
    """
    path = Path(flags[config]).expanduser() if config and is_given(flags.get(config)) else None
    in_file = _in_file(path, modes, config)
    flags = {name: row if is_given(row) else in_file.get(name, row) for name, row in flags.items()}
    given = [name for name, value in flags.items() if is_given(value)]
    mode = _mode_of(modes, flags)
    fields = mode.fields()
    for name in given:
        if name not in fields:
            raise ConfigError(_no_use(name, mode, modes))
    parts, _ = build_settings(mode.parts, flags)
    values = {field.name: getattr(part, field.name) for part in parts for field in fields_of(part.__class__)}
    for name in given:
        needs = fields[name].facts.needs
        if needs and not any(_is_met(need, values) for need in needs):
            wanted = " or ".join(_in_words(need, fields) for need in needs if _name_in(need) in fields)
            raise ConfigError(f"{fields[name].label} has a use only {wanted}")
    return Chosen(mode, tuple(parts), given)


def _in_file(path: Path | None, modes: Sequence[Mode], config: str | None) -> dict[str, Any]:
    """The options of a file, by name, each read as its type, so that errors name its place in the file."""
    if path is None:
        return {}
    fields = {name: field for mode in modes for name, field in mode.fields().items() if name != config}
    return values_in_file(path, fields)


def _mode_of(modes: Sequence[Mode], flags: Flags) -> Mode:
    """A function's mode is a case of the mode that an option asks for, and is looked at first."""
    asked = [mode for mode in modes if mode.by is not None and mode.is_asked_for(flags)]
    named = [mode for mode in asked if isinstance(mode.by, str)]
    if len(named) > 1:
        one, other = (mode.fields()[str(mode.by)].label for mode in named[:2])
        raise ConfigError(f"{one} and {other} exclude each other; give one of them")
    special = [mode for mode in asked if mode not in named]
    return next(iter([*special, *named]), None) or next(mode for mode in modes if mode.by is None)


def _no_use(name: str, mode: Mode, modes: Sequence[Mode]) -> str:
    having = [other for other in modes if name in other.fields()]
    label = having[0].fields()[name].label
    *first, last = [other.name for other in having]
    names = f"{', '.join(first)} and {last}" if first else last
    return f"{label} has no use with {mode.name}; it belongs to {names}"


def _name_in(need: str) -> str:
    return need.partition("=")[0].rstrip("!")


def _is_met(need: str, values: Flags) -> bool:
    name, _, wanted = need.partition("=")
    if name.endswith("!"):
        return str(values.get(name[:-1])) != wanted
    value = values.get(name)
    return (
        str(value) in wanted.split("|") if wanted else is_given(value) and value is not False and value != ""
    )


def _in_words(need: str, fields: Mapping[str, Field]) -> str:
    name, _, wanted = need.partition("=")
    if name.endswith("!"):
        return f"with another {fields[name[:-1]].label} than {wanted}"
    if wanted == "False":
        return f"without {fields[name].label}"
    return f"with {fields[name].label} {wanted.replace('|', ' or ')}".rstrip()
