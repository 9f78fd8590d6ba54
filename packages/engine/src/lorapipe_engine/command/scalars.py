"""One value of an option, read from the command line's words or from a file: a switch, a number, a text, a path."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import click

from lorapipe_engine.command.text import printable
from lorapipe_engine.errors import ConfigError


class Number(click.types.FloatParamType):
    """A finite number, not below ``least``, for an option that click reads; refused in the words of all others."""

    def __init__(self, least: float | None = None) -> None:
        self.least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        """Raises ConfigError."""
        name = max(param.opts, key=len).lstrip("-").replace("-", "_") if param is not None else "number"
        mend = (
            "; give one as 0.5"
            if self.least is None
            else f"; give {self.least:g} or more, as {self.least + 0.5:g}"
        )
        number = read_scalar(name, float, value, "", mend)
        if self.least is not None and number < self.least:
            raise ConfigError(f"{name}: {number:g} is below {self.least:g}")
        return number


def read_scalar(name: str, kind: Any, value: Any, where: str, mend: str = "") -> Any:
    """The value of the option ``name`` as bool, int, float, str or Path. ``where`` names the place that it came from,
    ``mend`` says of numbers what may be given. Raises ConfigError.
    """
    if kind is bool:
        return _truth(name, value, where)
    if kind is int:
        return _whole(name, value, where, mend)
    if kind is float:
        return _number(name, value, where, mend)
    if kind is Path and isinstance(value, Path):
        return value  # of a file of options, read before
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        mend = "; write it as one text" if isinstance(value, list) else ""
        raise ConfigError(f"{name}: expected a text, got {shown(value)}{where}{mend}")
    text = str(value)
    if kind is not Path:
        return text
    if not text:
        raise ConfigError(f"{name}: expected a path, got an empty text{where}")
    if text[:1].isalpha() and text[1:2] == ":" and not text.isprintable():
        raise ConfigError(
            f"{name}: {printable(text[:200])} was read with a \\ as an escape{where}; write / for each \\ in a path"
        )
    try:
        usable = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        usable = False
    if not usable:
        raise ConfigError(f"{name}: {text[:200]!a} has a character that no path can have{where}")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{name}: {shown(text)}: {error}{where}") from None


# How programs write switches: the most used GUI for sd-scripts writes 0 and 1.
_SWITCH = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


def _truth(name: str, value: Any, where: str) -> bool:
    if isinstance(value, bool | str | int):
        switch = _SWITCH.get(str(value).lower())
        if switch is not None:
            return switch
    raise ConfigError(f"{name}: expected true or false, got {shown(value)}{where}")


def _whole(name: str, value: Any, where: str, mend: str) -> int:
    try:
        digits = _digits(value)
        if isinstance(digits, str) and "." in digits:
            digits = float(digits)
        if isinstance(value, bool) or (isinstance(digits, float) and digits != int(digits)):
            raise ValueError
        return int(digits)
    except (ValueError, TypeError, OverflowError):
        raise ConfigError(f"{name}: expected a whole number, got {shown(value)}{where}{mend}") from None


def _number(name: str, value: Any, where: str, mend: str) -> float:
    try:
        if isinstance(value, bool):
            raise ValueError
        number = float(_digits(value))
    except (ValueError, TypeError, OverflowError):
        raise ConfigError(f"{name}: expected a number, got {shown(value)}{where}{mend}") from None
    if not math.isfinite(number):
        raise ConfigError(f"{name}: {number} is not a usable number{where}")
    return number


def _digits(value: Any) -> Any:
    """A number's text as people write numbers; Python itself would take 1_0 and other scripts' digits."""
    if isinstance(value, str) and ("_" in value or not value.isascii()):
        raise ValueError
    return value


def shown(value: Any) -> str:
    """A value as an error shows it, not too long."""
    import json

    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = text if len(text) <= 200 else f"{text[:200]}..."
    return f"'{text}'" if isinstance(value, str) else text
