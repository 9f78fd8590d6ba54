"""One definition for all faces of an option: a dataclass field is a flag, a TOML key, its help and its default.

    @dataclass(frozen=True, kw_only=True)
    class NetworkSettings:
        network_dim: int = option(64, "Rank of the LoRA matrices.", min=1)

``settings_options(NetworkSettings, ...)`` adds the flags to a command; ``build_settings`` makes the values from
flags, a TOML file and the defaults, in that order.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click

from lorapipe_engine.command.configuration import Foreign, Given, Translate, is_nothing, read_options
from lorapipe_engine.command.masking import remember_secrets
from lorapipe_engine.command.scalars import read_scalar, shown
from lorapipe_engine.errors import ConfigError

_KEY = "lorapipe"
_ANY = 1e9  # a bound above it is that of the number's type
# Headings of what a command does with its settings.
RUNS, INSTEAD = "The run, or several", "Instead of a run"

WORDS_FOR_NOTHING = ("none", "null")  # other programs', in any case; a path of that name is ./none


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What :func:`option`, or for a tool's own options :func:`~.modes.flag`, says of a field."""

    help: str
    choices: tuple[Any, ...] | None = None
    min: float | None = None
    max: float | None = None
    alias: str | None = None
    dashed: bool = False
    flags: tuple[str, ...] = ()
    opposite: str | None = None
    metavar: str | None = None
    needs: tuple[str, ...] = ()
    above: float | None = None
    secret: bool = False
    zero_is_off: bool = False
    taken_as: tuple[tuple[str, Any], ...] = ()
    heading: str | None = None


def option(
    default: Any,
    help: str,  # noqa: A002 - the word that click and argparse use
    *,
    choices: tuple[Any, ...] | None = None,
    min: float | None = None,  # noqa: A002
    max: float | None = None,  # noqa: A002
    alias: str | None = None,
    secret: bool = False,
    zero_is_off: bool = False,
    taken_as: Mapping[str, Any] | None = None,
    heading: str | None = None,
) -> Any:
    """A field of a settings class. ``min`` and ``max`` are allowed themselves; ``alias`` is a second flag; the value of
    a ``secret`` is shown nowhere (see :mod:`lorapipe_engine.command.masking`). ``zero_is_off``: 0 and -1 stand for
    None, as other programs write it. ``taken_as``: values of other programs, as texts, with what they mean here.
    ``heading``: what stands above it and those that follow it in the help, instead of the class's."""
    facts = Facts(help=help, choices=choices, min=min, max=max, alias=alias, secret=secret, heading=heading)
    facts = dataclasses.replace(facts, zero_is_off=zero_is_off, taken_as=tuple((taken_as or {}).items()))
    return dataclasses.field(default=default, metadata={_KEY: facts})


@dataclass(frozen=True)
class Field:
    """A field of a settings class, resolved: its type without None, and whether None is allowed."""

    name: str
    type: Any
    optional: bool
    default: Any
    facts: Facts

    @property
    def label(self) -> str:
        """What errors call it: a tool's own option by its flag, lora-train's by the name that TOML has too."""
        return next((name for name in self.facts.flags if name.startswith("--")), self.name)

    @property
    def is_list(self) -> bool:
        """Whether it takes any number of words."""
        return typing.get_origin(self.type) is tuple and typing.get_args(self.type)[-1] is Ellipsis

    @property
    def is_pair(self) -> bool:
        """Whether it takes one number or two, as ``512,768``."""
        return typing.get_origin(self.type) is tuple and not self.is_list


@cache
def fields_of(cls: type) -> tuple[Field, ...]:
    """The options of a settings class, in order."""
    hints = typing.get_type_hints(cls)
    rows = []
    for row in dataclasses.fields(cls):
        kind, facts = hints[row.name], row.metadata[_KEY]
        is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
        optional = is_union and type(None) in typing.get_args(kind)
        if optional:
            kind = next(arg for arg in typing.get_args(kind) if arg is not type(None))
        if typing.get_origin(kind) is typing.Literal:
            kind, facts = str, dataclasses.replace(facts, choices=typing.get_args(kind))
        if facts.dashed and not facts.flags:
            facts = dataclasses.replace(facts, flags=(f"--{row.name.replace('_', '-')}",))
        rows.append(Field(row.name, kind, optional, row.default, facts))
    return tuple(rows)


# -------------------------------------------------------------------------------- the command line


class WordsOption(click.Option):
    """An option that takes every word up to the next option, as ``--optimizer_args a=1 b=2``; it may be repeated.

    ``last_counts``: of an option given twice the last counts, as of options that take one value; else the words add up.
    """

    def __init__(self, *args: Any, last_counts: bool = False, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.last_counts = last_counts

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        super().add_to_parser(parser, ctx)
        for name in self.opts:
            known = parser._long_opt.get(name)
            if known is not None:
                known.process = _take_words(known.process, parser, self.name if self.last_counts else None)


def _take_words(
    process: Callable[[Any, Any], None], parser: Any, replaced: str | None
) -> Callable[[Any, Any], None]:
    def take(value: Any, state: Any) -> None:
        if replaced is not None:
            state.opts.pop(replaced, None)
        process(value, state)
        while state.rargs and not any(state.rargs[0].startswith(prefix) for prefix in parser._opt_prefixes):
            process(state.rargs.pop(0), state)

    return take


def settings_options(
    *classes: type, several: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that adds all options of the classes, ``--config_file`` and ``--print-config`` to a command.

    The command gets ``config_file``, ``print_only`` and, as ``flags``-style keyword arguments, every option's raw
    value (None where it was not given); pass them to :func:`build_settings`. ``several``: it gets a tuple of files.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        rows = [row for cls in classes for row in _under_headings(cls)]
        for field, title in reversed(rows):
            function = in_section(title, _flag(field)(function))
        function = click.option(
            "--print_config", "print_only", is_flag=True, help="Print all options as TOML and stop."
        )(function)
        function = in_section(INSTEAD, function)
        function = click.option(
            "--config_file",
            type=click.Path(path_type=Path),
            multiple=several,
            help="File of options: sd-scripts', or of a GUI for it (kohya_ss and others); flags override it."
            + " Each is a run." * several,
        )(function)
        return in_section(RUNS, function)

    return decorate


def _under_headings(cls: type) -> Iterator[tuple[Field, str]]:
    """The options of a class, each with what stands above it in the help."""
    title = title_of(cls)
    for field in fields_of(cls):
        title = field.facts.heading or title
        yield field, title


def title_of(part: type) -> str:
    """What stands above a class's options in the help: the first line of its docstring."""
    title = (part.__doc__ or "").strip().split("\n")[0]
    return title if title.endswith("...") else title.rstrip(".")


def in_section(title: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose newest option the help shows under this heading."""
    function.__click_params__[-1].section = title  # type: ignore[attr-defined]
    return function


def under(title: str, *names: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """As ``click.option``, for an option that the help shows under a heading."""
    return lambda function: in_section(title, click.option(*names, **settings)(function))


def _flag(field: Field) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    names = [f"--{field.name}", *([f"--{field.facts.alias}"] if field.facts.alias else []), field.name]
    text = field.facts.help
    if field.type is bool:
        opposite = field.name.removeprefix("no_") if field.name.startswith("no_") else f"no_{field.name}"
        names[0] = f"--{field.name}/--{opposite}"
        return click.option(*names, default=None, is_flag=True, help=text + _shown_default(field))
    if field.is_list:
        kind = typing.get_args(field.type)[0]
        metavar = "WORDS" if kind is str else f"{metavar_of(field)} ..."
        words: dict[str, Any] = {"cls": WordsOption, "multiple": True, "last_counts": kind in (int, float)}
        return click.option(*names, default=None, help=text, metavar=metavar, **words)
    metavar = "|".join(map(str, field.facts.choices)) if field.facts.choices else metavar_of(field)
    return click.option(*names, default=None, type=str, help=text + _shown_default(field), metavar=metavar)


def metavar_of(field: Field) -> str:
    """What stands for a value of the field in the help."""
    if field.is_pair:
        return "N[,N]"
    kind = typing.get_args(field.type)[0] if field.is_list else field.type
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _shown_default(field: Field) -> str:
    if (
        field.default is None
        or field.default is False
        or "[default" in field.facts.help
        or field.default == ""
    ):
        return ""
    value = field.default
    if value is True:
        return "  [default: yes]"
    return f"  [default: {','.join(map(str, value)) if isinstance(value, tuple) else value}]"


# -------------------------------------------------------------------------------- from anywhere to values


def build_settings(
    classes: Sequence[type],
    flags: Mapping[str, Any],
    config_file: Path | None = None,
    foreign: Foreign | None = None,
    translate: Translate | None = None,
) -> tuple[list[Any], dict[str, str]]:
    """Instances of the classes, and for each option where its value came from: "from the command line", "from
    options.toml, line 3" or "default".

    ``foreign`` is asked about every key of the file that is no option, ``translate`` about the file as a whole: see
    :mod:`lorapipe_engine.command.configuration`. What is empty is not given: in the file it leaves the default, on the
    command line it takes back what the file gives.

    Raises ConfigError for an unknown key, a wrong type or a value out of range; InputError for a file that cannot be
    read.
    """
    fields = {field.name: field for cls in classes for field in fields_of(cls)}
    from_file = read_options(config_file, fields, _aliases(fields), foreign, translate) if config_file else {}
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name, field in fields.items():
        values[name], origin[name] = _value(field, flags.get(name), from_file.get(name))
        if field.facts.secret and values[name]:
            remember_secrets([values[name]])
    return [cls(**{field.name: values[field.name] for field in fields_of(cls)}) for cls in classes], origin


def values_in_file(path: Path, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The values that a file gives, by option, each read as its type, so that errors name its place. Raises ConfigError
    and InputError."""
    given = read_options(path, fields, _aliases(fields))
    return {
        name: _value(fields[name], None, row)[0]
        for name, row in given.items()
        if _is_given(fields[name], row.value)
    }


def _aliases(fields: Mapping[str, Field]) -> dict[str, str]:
    return {name: field.name for field in fields.values() for name in _other_names(field)}


def _other_names(field: Field) -> list[str]:
    """What a file may call an option beside its field's name: its spellings on the command line, with underscores."""
    spellings = [name[2:].replace("-", "_") for name in field.facts.flags if name.startswith("--")]
    return [*spellings, *([field.facts.alias] if field.facts.alias else [])]


def _value(field: Field, flag: Any, given: Given | None) -> tuple[Any, str]:
    """The value of an option and where it came from."""
    if flag is not None and flag != ():
        # A GUI writes --vae "" for none. In a tool's own options an empty text is a shell's variable that is not set.
        is_given = bool(field.facts.flags) or _is_given(field, flag)
        return _read(field, flag if is_given else None, "", "from the command line")
    if given is None or not _is_given(field, given.value):
        return field.default, "default"
    return _read(field, given.value, f" (from {given.place})", f"from {given.place}")


def _read(field: Field, raw: Any, where: str, source: str) -> tuple[Any, str]:
    """A value as the field's type, and where it came from, with what another program's value was taken for."""
    if raw is None:
        return field.default, source
    if field.facts.zero_is_off and not isinstance(raw, bool) and str(raw) in ("0", "0.0", "-1"):
        return None, source
    meant = dict(field.facts.taken_as).get(str(raw).lower())
    if meant is not None:
        return meant, f"{source}: {raw} is taken as {meant}"
    return convert(field, raw, where), source


def taken_notes(origin: Mapping[str, str]) -> list[str]:
    """A line for each option whose value is another program's; ``origin`` is what :func:`build_settings` gave."""
    marks = {name: source.rpartition(": ")[2] for name, source in origin.items()}
    return [f"{name}: {mark}" for name, mark in marks.items() if " is taken as " in mark]


def _is_given(field: Field, value: Any) -> bool:
    """Whether a value of a file or the command line asks for something. An empty text, nothing, and for what is no
    switch false, stand for an option that is not given."""
    if _means_nothing(field, value):
        return False
    if field.type is bool:
        return value is not None and value != ""
    if isinstance(value, list | tuple):
        return any(not is_nothing(item) for item in value)
    return not is_nothing(value)


def _means_nothing(field: Field, value: Any) -> bool:
    """Whether a text is another program's word for nothing, where it can be no value of the option."""
    word = value.lower() if isinstance(value, str) else ""
    if word not in WORDS_FOR_NOTHING or field.facts.flags:
        return False
    return (
        word not in field.facts.choices if field.facts.choices else field.type is not str or not field.default
    )


def convert(field: Field, value: Any, where: str) -> Any:
    """A raw value (a string from the command line, anything from TOML) as the field's type, checked."""
    if field.is_list:
        return _words(field, value, where)
    if field.is_pair:
        return _pair(field, value, where)
    if field.facts.secret and not isinstance(value, str):
        raise ConfigError(f"{field.label}: expected a text{where}")
    result = read_scalar(field.label, field.type, value, where, _mend(field))
    if field.facts.choices is not None and str(result).lower() in field.facts.choices:
        result = result.lower()
    if field.facts.choices is not None and result not in field.facts.choices:
        choices = ", ".join(map(str, field.facts.choices))
        raise ConfigError(f"{field.label}: {shown(result)} is none of {choices}{where}")
    _check_range(field, result, where)
    return result


def _check_range(field: Field, value: Any, where: str) -> None:
    low, high = field.facts.min, field.facts.max
    if low is not None and value < low:
        raise ConfigError(f"{field.label}: {value} is below {low:g}{where}")
    if field.facts.above is not None and value <= field.facts.above:
        raise ConfigError(f"{field.label}: {value} is not above {field.facts.above:g}{where}")
    if high is not None and value > high:
        raise ConfigError(f"{field.label}: {value} is above {high:g}{where}")


def _mend(field: Field) -> str:
    """What may be given for a number, with an example; nothing for what is none."""
    kind = typing.get_args(field.type)[0] if field.is_list else field.type
    if kind not in (int, float):
        return ""
    low, above, high = field.facts.min, field.facts.above, field.facts.max
    high = None if high is not None and high > _ANY else high
    least = above if low is None else low
    if field.default and isinstance(field.default, int | float):
        example = f"{field.default:g}"
    elif kind is int:
        example = f"{max(low or 0, min(4 if high is None else high, 4)):g}"
    elif high is not None and high < (least or 0) + 0.5:
        example = f"{((least or 0) + high) / 2:g}"
    else:
        example = "0.5 or 1e-4" if least is None or least < 1e-4 else f"{least + 0.5:g}"
    if low is not None:
        return f"; give {low:g} {'or more' if high is None else f'to {high:g}'}, as {example}"
    bounds = [f"above {above:g}"] if above is not None else []
    bounds += [f"at most {high:g}"] if high is not None else []
    return f"; give {' and '.join(bounds)}, as {example}" if bounds else f"; give one as {example}"


def _words(field: Field, value: Any, where: str) -> tuple[Any, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    kind = typing.get_args(field.type)[0]
    if typing.get_origin(kind) is tuple:  # of options that take several words each time
        return tuple(tuple(map(str, item)) for item in items)
    if kind is Path:
        return tuple(read_scalar(field.label, kind, item, where) for item in items)
    if kind is not str:
        # Numbers may be words of their own or stand in one, with commas.
        numbers = [part for item in items for part in (item.split(",") if isinstance(item, str) else [item])]
        mend = f"; give numbers with commas between them{_mend(field).replace('; give', ', each', 1)}"
        values = tuple(read_scalar(field.label, kind, number, where, mend) for number in numbers)
        for number in values:
            _check_range(field, number, where)
        return values
    if any(isinstance(item, dict | list) for item in items):
        raise ConfigError(f"{field.label}: expected a list of texts{where}")
    # In lora-train's lists an empty text is what a GUI leaves empty; a tool's own options look at it themselves.
    return tuple(str(item) for item in items if item != "" or field.facts.flags)


_SIDES = re.compile(r"\s*[,x×]\s*|\s+")  # between two sides: 512,768 and 512x768 of webuis


def _pair(field: Field, value: Any, where: str) -> tuple[int, int]:
    items = list(value) if isinstance(value, list | tuple) else _SIDES.split(str(value).strip("()[] "))
    if len(items) not in (1, 2) or "" in items:
        raise ConfigError(
            f"{field.label}: expected one number or two, as 512 or 512,768; got {shown(value)}{where}"
        )
    mend = "; give one number or two, as 512 or 512,768"
    numbers = [read_scalar(field.label, int, item, where, mend) for item in items]
    for number in numbers:
        _check_range(field, number, where)
    return numbers[0], numbers[-1]
