"""Metadata for people and as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from lorapipe_engine.command.text import printable
from lorapipe_engine.errors import ProblemFound
from lorapipe_engine.files.tensorfile import quote
from lorapipe_engine.networks.metadata import parse_metadata, tag_counts
from lorapipe_inspect.text import counted


def record(metadata: Mapping[str, str]) -> dict[str, Any]:
    """All entries, with the tables and lists in them decoded."""
    return {"metadata": parse_metadata(metadata)}


def key_record(name: str, metadata: Mapping[str, str], keys: Sequence[str]) -> dict[str, Any]:
    """Only some entries of the file ``name``. Raises ProblemFound for one that is not there."""
    for key in keys:
        if key not in metadata:
            close = get_close_matches(key, metadata, 1)
            hint = (
                f"did you mean {printable(close[0])}?"
                if close
                else f"it has {counted(len(metadata), 'other')}"
            )
            raise ProblemFound(f"{name}: no metadata {quote(key)}; {hint}")
    return record({key: metadata[key] for key in keys})


def value_text(value: Any, *, plain: bool) -> str:
    """A value whole: tables as indented JSON, text as it is (``plain``) or fit for a terminal."""
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False, indent=2)
    return value if plain else "\n".join(map(printable, value.splitlines())) or value


def listing(metadata: Mapping[str, str], longest: int) -> list[str]:
    """A line per entry, sorted; what is longer is cut and says how long it is."""
    if not metadata:
        return ["  no metadata"]
    width = min(40, max(map(len, metadata)))
    lines = []
    for key, value in sorted(metadata.items()):
        shown = value if len(value) <= longest else f"{value[:longest]}... ({len(value):,} characters)"
        lines.append(f"  {printable(key):<{width}}  {printable(shown)}")
    return lines


def tag_record(metadata: Mapping[str, str], top: int) -> dict[str, Any]:
    """The most frequent tags; 0 for all."""
    return {"tags": dict(tag_counts(metadata).most_common(top or None))}


def tag_lines(metadata: Mapping[str, str], top: int) -> list[str]:
    """A line per tag: how often, and the tag."""
    counts = tag_counts(metadata)
    if not counts:
        there = metadata.get("ss_tag_frequency")
        if there is None:
            return ["  no tags: the file has no ss_tag_frequency"]
        empty = there.strip() in ("", "{}")
        return [
            f"  no tags: ss_tag_frequency {'is empty' if empty else 'is no table of tags that can be read'}"
        ]
    shown = counts.most_common(top or None)
    width = len(f"{shown[0][1]:,}")
    lines = [f"  {count:>{width},}  {printable(tag)}" for tag, count in shown]
    left = len(counts) - len(shown)
    return [*lines, f"  and {counted(left, 'more tag')}"] if left else lines
