"""The words of a command line that name files, alike in all commands that take several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def file_arguments(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator: the function gets the words as ``inputs`` and whether to look into folders' folders as
    ``recursive``, for :func:`lorapipe_inspect.inputs.each_file`."""
    recursive = click.option("-r", "--recursive", is_flag=True, help="Look into folders' folders too.")
    return click.argument("inputs", nargs=-1, metavar="[FILE]...")(recursive(function))
