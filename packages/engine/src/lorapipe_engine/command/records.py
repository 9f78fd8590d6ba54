"""What the tools pass each other through pipes: paths, or JSON records that have a path.

In a list, a line that begins with ``{`` is a JSON object with a text ``path`` (or ``file``); any other line is a path
as it stands, spaces and all; one in double quotes, as Windows copies it, is read without them where nothing has that
name with them. A list with NUL bytes between the paths (``find -print0``) is read too; it holds paths only. Fields that
a tool does not know stay in the record and go on to the next tool. Lists are UTF-8, or UTF-16 with its mark; bytes of a
name that are no UTF-8 survive (``surrogateescape``, as Python has file names).
"""

from __future__ import annotations

import codecs
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import click

from lorapipe_engine.command.json_text import NoJson, parse_json
from lorapipe_engine.command.text import printable
from lorapipe_engine.errors import InputError

STREAM = "-"
_PATH_NAMES = ("path", "file")
_BLOCK = 1 << 16
_BOM = "\ufeff"
_OF_PROGRAMS = frozenset(
    {
        "@eadir",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        "__macosx",
        "__pycache__",
        "$recycle.bin",
        "lost+found",
        "system volume information",
    }
)


@dataclass(frozen=True)
class Record:
    """A file and what is known of it: ``data`` holds the other fields of its JSON object."""

    path: Path
    data: Mapping[str, Any] = field(default_factory=dict)


# -------------------------------------------------------------------------------- in


def read_records(words: Sequence[str], stdin: BinaryIO | None = None) -> Iterator[Record]:
    """The records that a command is to work on, as they come.

    ``words`` are paths; ``-``, or no word at all, stands for the list on ``stdin`` (the process's own by default).
    Raises InputError for a line that is no record, for an empty word, and instead of waiting at a terminal.
    """
    check_words(words)
    for word in words or (STREAM,):
        if word != STREAM:
            yield Record(Path(word))
            continue
        stream = stdin or _process_stdin()
        if stream is None or stream.isatty():
            raise InputError("nothing to work on: name files or folders, or pipe paths in")
        yield from read_list(stream)


def check_words(words: Sequence[str]) -> None:
    """Raise InputError for an empty word: a variable of a script that is not set would mean the folder one is in."""
    if "" in words:
        raise InputError("an empty path; name a folder or file ('.' is the folder you are in)")


def _process_stdin() -> BinaryIO | None:
    # A program without a console has none.
    return sys.stdin.buffer if sys.stdin is not None else None


def read_list(stream: BinaryIO, name: str = "standard input") -> Iterator[Record]:
    """The records of a list. Empty lines are passed over; ``name`` is what an error calls the list."""
    for number, line, exact in _lines(stream):
        text = line.decode("utf-8", "surrogateescape")
        if not exact:
            text = text.removesuffix("\r")
            # Windows' editors and shells begin a list with a byte order mark.
            text = text.removeprefix(_BOM) if number == 1 else text
        if text.startswith("{") and not exact:
            yield _parse_or_path(text, f"{name}, line {number}")
        elif text.strip() or (exact and text):
            yield Record(Path(text if exact else _unquoted(text)))


def _unquoted(text: str) -> str:
    """A path that was copied with double quotes around it, without them, unless something is called so."""
    inside = text.strip()[1:-1]
    quoted = text.strip() == f'"{inside}"' and inside
    return inside if quoted and not os.path.lexists(text) and os.path.exists(inside) else text  # noqa: PTH110


def _lines(stream: BinaryIO) -> Iterator[tuple[int, bytes, bool]]:
    """Numbered lines, and whether they are exact: ended by NUL bytes, because the first block has one."""
    end = b"\n"
    rest = b""
    number = 0
    # What has come so far is taken, so that a slow sender's first lines are not held back.
    read: Callable[[int], bytes] = getattr(stream, "read1", stream.read)
    while block := read(_BLOCK):
        if not number and not rest and block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            block = _from_utf16(block + stream.read())
        if not number and b"\0" in block:
            end = b"\0"
        *whole, rest = (rest + block).split(end)
        for line in whole:
            number += 1
            yield number, line, end == b"\0"
    if rest:
        yield number + 1, rest, end == b"\0"


def _from_utf16(data: bytes) -> bytes:
    """A list that PowerShell wrote to a file, in UTF-8; as it is where it only begins so."""
    try:
        text = data.decode("utf-16")
        return data if "\0" in text else text.encode()
    except UnicodeError:
        return data


def _parse_or_path(text: str, place: str) -> Record:
    """The record of a line; where it is none, the file that is called so."""
    try:
        return _parse(text, place)
    except InputError:
        if os.path.lexists(text):
            return Record(Path(text))
        raise


def _parse(text: str, place: str) -> Record:
    try:
        data = parse_json(text)
    except NoJson as error:
        raise InputError(f"{place}: no JSON record ({error})") from None
    name = next((key for key in _PATH_NAMES if key in data), _PATH_NAMES[0])
    path = data.pop(name, None)
    if not isinstance(path, str) or not _is_file_name(path):
        raise InputError(f'{place}: the record has no "path" that can name a file')
    return Record(Path(path), data)


def _is_file_name(text: str) -> bool:
    try:
        return bool(text) and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


# -------------------------------------------------------------------------------- folders


def expand_folders(
    records: Iterable[Record], suffixes: Collection[str], *, recursive: bool | None = None
) -> Iterator[Record]:
    """Put the files of a folder with one of ``suffixes`` in the place of a record whose path is a folder, with
    ``recursive`` those of its folders too (None: the tool cannot be asked for that).

    They are sorted and get the record's ``data``. Other records pass, whether their files exist or not. Raises
    InputError for a folder that cannot be read or has no such file.
    """
    for record in records:
        if not record.path.is_dir():
            yield record
            continue
        files = find_files(record.path, suffixes, recursive=bool(recursive))
        if not files:
            asked = recursive is False and _has_folders(record.path)
            more = "; -r looks into its folders" if asked else ""
            raise InputError(f"{record.path}: has no {', '.join(sorted(suffixes))} files{more}")
        yield from (Record(path, record.data) for path in files)


def _has_folders(folder: Path) -> bool:
    return any(path.is_dir() and not is_left_out(path.name) for path in folder.iterdir())


def find_files(folder: Path, suffixes: Collection[str], *, recursive: bool = False) -> list[Path]:
    """The files of a folder by suffix (``.png``, "" for none; any case in the names), sorted by the letters' code
    points, so alike on every system. What :func:`is_left_out` says is left out, links to folders are not followed.

    Raises InputError if the folder cannot be read.
    """
    return [*map(Path, find_names(folder, suffixes, recursive=recursive))]


def find_names(folder: Path, suffixes: Collection[str], *, recursive: bool = False) -> list[str]:
    """The same as texts, of which thousands are made in a fraction of the time that path objects take."""
    check_folder(folder)
    wanted = {suffix.lower() for suffix in suffixes}

    def is_wanted(name: str) -> bool:
        # As Path.suffix has it, which takes longer than all the rest on a large folder.
        dot = name.rfind(".")
        suffix = name[dot:].lower() if 0 < dot < len(name) - 1 else ""
        return suffix in wanted and name[0] != "."

    if recursive:
        return [str(path) for path in sorted(_walk(folder, is_wanted), key=lambda path: path.parts)]
    start = "" if folder == Path() else os.path.join(folder, "")  # noqa: PTH118
    return [start + name for name in sorted(_names(folder, is_wanted))]


def is_left_out(name: str) -> bool:
    """Whether a file or folder is none of the user's by its name: hidden, or made by a file system, a network drive or
    an archiver for itself (thumbnails, forks, bins)."""
    return name.startswith(".") or name.lower() in _OF_PROGRAMS


def check_folder(folder: Path) -> None:
    """Raise InputError, saying what is there instead, unless ``folder`` is a folder."""
    if folder.is_dir():
        return
    what = "is a file, not a folder" if folder.exists() else "no such folder"
    raise InputError(f"{folder}: {what}")


def _names(folder: Path, is_wanted: Callable[[str], bool]) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if is_wanted(entry.name) and _is_file(entry))
    except OSError as error:
        raise _unreadable(error, folder) from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _walk(folder: Path, is_wanted: Callable[[str], bool]) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise _unreadable(error, folder) from error

    for parent, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not is_left_out(name)]
        yield from (path for name in names if is_wanted(name) and (path := Path(parent, name)).is_file())


def _unreadable(error: OSError, folder: Path) -> InputError:
    return InputError(f"{error.filename or folder}: cannot be read ({error.strerror})")


# -------------------------------------------------------------------------------- out


def write_record(
    record: Record, *, jsonl: bool | None = None, text: str | None = None, stdout: BinaryIO | None = None
) -> None:
    """Write a record to ``stdout`` (the process's own by default) at once, in one line.

    It is a JSON object, or as text ``text``, by default the path. Without ``jsonl`` a terminal gets text and a pipe
    JSON. JSON takes no numbers that are none (NaN, infinity): ValueError.
    """
    stream = stdout or sys.stdout.buffer
    if jsonl is None:
        jsonl = not stream.isatty()
    if jsonl:
        line = format_record(record)
    elif text is not None:
        line = printable(text)
    else:
        line = printable(record.path) if stream.isatty() else format_path(record.path)
    stream.write(line.encode("utf-8", "surrogateescape") + b"\n")
    stream.flush()


def write_json(value: Any, *, err: bool = False) -> None:
    """Write a value as one line of JSON to stdout, in UTF-8; escaped where a file name has bytes that are none.

    Raises ValueError for numbers that are none (NaN, infinity).
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    line = text if _is_utf8(text) else json.dumps(value, allow_nan=False)
    click.echo(line.encode(), err=err)


def write_file_text(text: str) -> None:
    """Write the text of a file to stdout: in UTF-8 where a file or a program takes it, as the terminal has it else."""
    if sys.stdout.isatty():
        click.echo(text)
    else:
        click.echo(text.encode("utf-8", "surrogateescape"))


def write_path(path: Path) -> None:
    """Write the path of a result to stdout: as :func:`format_path` has it in a pipe, for people on a terminal."""
    line = printable(path) if sys.stdout.isatty() else format_path(path)
    sys.stdout.buffer.write(line.encode("utf-8", "surrogateescape") + b"\n")
    sys.stdout.buffer.flush()


def format_record(record: Record) -> str:
    """A record as a JSON object in one line, ``path`` first."""
    return format_fields(str(record.path), record.data)


def format_fields(path: str, data: Mapping[str, Any]) -> str:
    """The same for a record that has not been made."""
    fields = {"path": path, **{k: v for k, v in data.items() if k != "path"}}
    # Value by value: the encoder takes texts at once, and long to start on an object.
    encode = _ENCODER.encode
    text = f"{{{', '.join([f'{encode(key)}: {encode(value)}' for key, value in fields.items()])}}}"
    # Bytes of a name that are no UTF-8 must not stand in JSON; it has an escape for them.
    return text if _is_utf8(text) else json.dumps(fields, allow_nan=False, default=_plain)


def format_path(path: Path) -> str:
    """A path as a line; as a JSON record if the bare line would be read as something else or upset a terminal (a
    control character in it, a ``{`` in front, nothing but spaces).
    """
    text = str(path)
    odd = (
        text.startswith(("{", _BOM)) or not text.strip() or any(unicodedata.category(c) == "Cc" for c in text)
    )
    return json.dumps({"path": text}) if odd or not _is_utf8(text, "surrogateescape") else text


def _plain(value: Any) -> Any:
    """What JSON has for a value that it does not know: paths as text, numbers of numpy as numbers."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot stand in a record")


# json.dumps would make one for each record.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_plain)


def _is_utf8(text: str, errors: str = "strict") -> bool:
    try:
        text.encode("utf-8", errors)
    except UnicodeEncodeError:
        return False
    return True
