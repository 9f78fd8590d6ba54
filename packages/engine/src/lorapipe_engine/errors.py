"""The exceptions that users see.

A library function that cannot go on raises one of these with a single line: what is wrong, where, and how to
mend it. Only :mod:`lorapipe_engine.command.tool` prints them and turns them into an exit status:

==== ==========================================================================================
0    done
1    it ran, but something failed or a problem was found
2    nothing was done: wrong usage or configuration, or an input that cannot be read
130  interrupted (Ctrl-C)
143  terminated (SIGTERM)
==== ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class LoraError(Exception):
    """Base of every error with a message meant for the user; ``exit_code`` is the process's status."""

    exit_code = 1


class ConfigError(LoraError):
    """An option, configuration file or combination of settings is wrong. Nothing was done."""

    exit_code = 2


class InputError(LoraError):
    """A file or folder given as input is missing, broken or of the wrong kind. Nothing was done."""

    exit_code = 2


class OutputError(LoraError):
    """A result could not be written. Files that stood there before are unchanged."""


class ProblemFound(LoraError):
    """The tool did its work and what it looked at has a problem, or some of the inputs failed."""


class MissingExtra(LoraError):
    """An optional dependency is not installed; the message names the pip command."""

    exit_code = 2


@contextmanager
def naming(name: object) -> Iterator[None]:
    """Put the name of a file in front of what an InputError says, where it is not in it."""
    try:
        yield
    except InputError as error:
        if str(name) in str(error):
            raise
        raise InputError(f"{name}: {error}") from error
