"""The lines of a journal. A journal is data that may come from anybody: each field is looked at before it is used."""

from __future__ import annotations

import base64
import binascii
import json
import os
from dataclasses import dataclass
from typing import Any

from lorapipe_engine.changes.journal import HIDDEN
from lorapipe_engine.errors import InputError

MOST = 1 << 30  # bytes of a journal


@dataclass(frozen=True)
class Entry:
    """One change. ``old``: the old file lies in the run's folder; ``kept`` and ``renamed``: where a file was moved to;
    else ``before`` is what it held. ``inode``: the number of the old file, None where it is not known. ``link``: what
    stood in it, if it was a link.
    """

    name: str
    old: bool = False
    kept: str | None = None
    renamed: str | None = None
    before: bytes | None = None
    after: str = ""
    inode: int | None = None
    link: str | None = None


def read_entries(data: bytes, place: str) -> list[Entry | InputError]:
    """The changes in a journal, and in their places what is wrong with those that are none.

    A last line that is not whole never came to be a change. Raises InputError for lines that are no JSON objects.
    """
    entries: list[Entry | InputError] = []
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: damaged in line {number}; nothing was taken back") from error
        if not isinstance(row, dict):
            raise InputError(f"{place}: damaged in line {number} (no JSON object); nothing was taken back")
        try:
            entries.append(_entry(row))
        except InputError as error:
            entries.append(InputError(f"{place}, line {number}: {error}"))
    return entries


def _entry(row: dict[str, Any]) -> Entry:
    name = _file_name(row.get("name"))
    inode = row.get("inode")
    # Nothing else is a number of a file: what is missing never equals what is missing.
    inode = inode if type(inode) is int and inode > 0 else None
    link = _text(row, "link") if "link" in row else None
    if "kept" in row:
        return Entry(name, kept=_file_name(row["kept"]), inode=inode, link=link)
    if "renamed" in row:
        return Entry(name, renamed=_file_name(row["renamed"]), inode=inode, link=link)
    after = _text(row, "after")
    if "old" in row:
        return Entry(name, old=True, after=after, inode=inode)
    return Entry(name, before=_before(row), after=after, link=link)


def _file_name(name: Any) -> str:
    """A name of a file in the folder. Raises InputError for a path, ``..``, and what no file is called."""
    bad = not isinstance(name, str) or name in ("", ".", "..", HIDDEN) or any(one in name for one in _BREAKS)
    if not bad:
        try:
            os.fsencode(name)
        except UnicodeEncodeError:
            bad = True
    if bad:
        shown = repr(name)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise InputError(f"{shown}: not a file of this folder; left alone")
    return str(name)


# Of Windows the drive and the streams of a file as well.
_BREAKS = ("\0", "/", *((os.altsep, os.sep, ":") if os.name == "nt" else ()))


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or "\0" in value:
        raise InputError(f"no text under {key!r}; left alone")
    return value


def _before(row: dict[str, Any]) -> bytes | None:
    if "before_base64" in row:
        try:
            return base64.b64decode(_text(row, "before_base64"), validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError("no base 64 under 'before_base64'; left alone") from error
    if "before" not in row:
        raise InputError("it does not say what the file held; left alone")
    before = row["before"]
    if before is None:
        return None
    try:
        return before.encode() if isinstance(before, str) else _text(row, "before").encode()
    except UnicodeEncodeError as error:
        raise InputError("no text under 'before'; left alone") from error
