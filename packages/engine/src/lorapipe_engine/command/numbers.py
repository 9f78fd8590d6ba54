"""Numbers as click reads them, refused in the words of all tools."""

from __future__ import annotations

from typing import Any

import click

from lorapipe_engine.command.scalars import read_scalar


class Number(click.FloatRange):
    """A finite number, within a range where one is given. Another is refused as those of files of options are."""

    name = "float"  # in the help, where a range stands behind it

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name = max(param.opts, key=len).lstrip("-").replace("-", "_") if param is not None else "number"
        return super().convert(read_scalar(name, float, value, "", ": give one such as 0.5"), param, ctx)
