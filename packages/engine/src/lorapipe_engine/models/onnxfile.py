"""What an ONNX file names outside itself, looked into before onnxruntime opens it.

Weights may lie in other files, whose names stand in the network. Which names are followed depends on the version of
onnxruntime; here they are files in the network's own folder. The file is walked as protobuf messages of ``onnx.proto``
(fields by their numbers), without its weights, so a gigabyte takes milliseconds.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.tensorfile import quote

LFS_POINTER = "version https://git-lfs"
MOST_FILES = 1000  # with weights of one network
_DEEPEST = 200  # messages inside each other

# Messages by name: the numbers of their fields that may hold a tensor somewhere inside, and which message each is.
_MESSAGES: Mapping[str, Mapping[int, str]] = MappingProxyType(
    {
        "model": {7: "graph", 20: "training", 25: "function"},
        "graph": {1: "node", 5: "tensor", 15: "sparse"},
        "training": {1: "graph", 2: "graph"},
        "function": {7: "node", 11: "attribute"},
        "node": {5: "attribute"},
        "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
        "sparse": {1: "tensor", 2: "tensor"},
        "tensor": {13: "entry"},
        "entry": {1: "key", 2: "value"},
    }
)


class _Damaged(Exception):
    """Bytes that are no protobuf message."""


def check_network(path: Path) -> None:
    """Raise InputError for a network that names a file outside its folder, a link out of it, or one that is missing.

    The network itself may be a link, as in the hub's cache; its weights then lie beside what it leads to as well.
    """
    _check_kind(path)
    try:
        names = set(data_files(path))
    except (_Damaged, IndexError):
        raise InputError(f"{path}: cannot be loaded: not an ONNX file that can be read") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "an empty file"
        raise InputError(f"{path}: cannot be loaded: {reason}") from error
    if len(names) > MOST_FILES:
        raise InputError(f"{path}: its weights lie in {len(names):,} files, more than {MOST_FILES:,}")
    folders = {path.parent.resolve(), path.resolve().parent}
    for name in sorted(names):
        _check_data(path, name, folders)


def _check_kind(path: Path) -> None:
    """Raise InputError for the files that people have in the place of a network."""
    try:
        with path.open("rb") as file:
            head = file.read(64).lstrip()
    except OSError:
        return  # told when it is walked
    if head.startswith(LFS_POINTER.encode()):
        raise InputError(
            f"{path}: a git-lfs pointer, not the network itself; run git lfs pull there, or download it again"
        )
    if head[:1] == b"<":
        raise InputError(f"{path}: a web page, not a network; download the file itself")


def _check_data(path: Path, name: str, folders: set[Path]) -> None:
    parts = name.split("/")
    if not name.strip() or "\0" in name or "\\" in name or ":" in name or not all(parts) or ".." in parts:
        raise InputError(
            f"{path}: names weights in {quote(name)}, which is no file of its folder; do not use this model"
        )
    data = path.parent / name
    if not data.is_file():
        raise InputError(
            f"{path}: its weights lie in {quote(name)}, which is not beside it; download both again"
        )
    inside = data.resolve()
    if not any(folder in inside.parents for folder in folders):
        raise InputError(
            f"{path}: names weights in {quote(name)}, a link out of its folder; put the file itself there"
        )


def data_files(path: Path) -> Iterator[str]:
    """The locations of external data that any tensor of an ONNX file names, repeated ones repeated."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        waiting = [("model", 0, len(data), 0)]
        while waiting:
            kind, start, end, depth = waiting.pop()
            if depth > _DEEPEST:
                raise _Damaged
            if kind == "entry":
                yield from _location(data, start, end)
                continue
            inner = _MESSAGES[kind]
            waiting.extend(
                (inner[number], at, stop, depth + 1)
                for number, at, stop in _fields(data, start, end)
                if number in inner
            )


def _location(data: mmap.mmap, start: int, end: int) -> Iterator[str]:
    """The value of a key and a value, if the key is ``location``."""
    fields = [(number, data[at:stop]) for number, at, stop in _fields(data, start, end)]
    if any(number == 1 and text == b"location" for number, text in fields):
        yield from (text.decode("utf-8", "backslashreplace") for number, text in fields if number == 2)


def _fields(data: mmap.mmap, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of a message that have a length: number, and where the bytes are. Raises _Damaged or IndexError."""
    groups = 0  # of an old kind, passed over with all that is in them
    while place < end:
        tag, place = _varint(data, place, end)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            _, place = _varint(data, place, end)
        elif wire == 1:
            place += 8
        elif wire == 5:
            place += 4
        elif wire == 2:
            length, place = _varint(data, place, end)
            if length > end - place:
                raise _Damaged
            if not groups:
                yield number, place, place + length
            place += length
        elif wire == 3:
            groups += 1
        elif wire == 4 and groups:
            groups -= 1
        else:
            raise _Damaged
    if place != end or groups:
        raise _Damaged


def _varint(data: mmap.mmap, place: int, end: int) -> tuple[int, int]:
    """A whole number in steps of seven bits, and the place behind it."""
    byte = data[place]
    if byte < 0x80:
        return byte, place + 1
    value = shift = 0
    while place < end and shift < 70:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
    raise _Damaged
