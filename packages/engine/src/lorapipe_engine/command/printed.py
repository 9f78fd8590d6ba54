"""Options written as the TOML that ``--config_file`` reads: what ``--print_config`` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorapipe_engine.command.masking import MASK, masked
from lorapipe_engine.command.options import WORDS_FOR_NOTHING, Field, fields_of
from lorapipe_engine.command.text import printable


def print_config(parts: Sequence[Any], origin: Mapping[str, str]) -> str:
    """The effective options as commented TOML that ``--config_file`` reads."""
    lines: list[str] = []
    for part in parts:
        lines.append(f"[{type(part).__name__.removesuffix('Settings').lower()}]")
        for field in fields_of(part.__class__):
            value = getattr(part, field.name)
            source = origin.get(field.name, "derived")
            # A file's name may hold a line break, which would end the comment.
            lines.append(f"# {field.facts.help} ({printable(source)})")
            lines.append(toml_line(field, value))
        lines.append("")
    return "\n".join(lines)


def toml_line(field: Field, value: Any) -> str:
    """A line of TOML that gives an option this value; a comment where it has none, or is a secret."""
    if value is None:
        # None would be read as the default again where that is another.
        return f"# {field.name} =" if field.default is None else f"{field.name} = 0"
    if field.facts.secret:
        return f"# {field.name} = {_toml(MASK)} (given, and not shown)"
    return masked(f"{field.name} = {_toml(value)}")


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, int | float):
        return repr(value)
    import json

    text = str(value)
    if isinstance(value, Path) and text.lower() in WORDS_FOR_NOTHING:
        text = f"./{text}"
    # JSON leaves DEL as it is, TOML does not take it.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
