"""Sizes of pictures from a few bytes of their headers, for PNG, JPEG and WebP of the usual make.

Pillow takes ten times as long and reads all of a WebP. What is unusual here in any way is left to it: these readers
give a size or None, never an error and never a guess. Sources: the PNG, JPEG (ITU T.81), Exif 2.3 and WebP container
specifications.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

Size = tuple[int, int]

TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
_FIRST = 4096
_MANY = 80_000_000  # more pixels than that are for Pillow to refuse, or not
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_NOTES = frozenset({b"eXIf", b"iTXt", b"tEXt", b"zTXt"})
_PNG_LONGEST = 1 << 20  # of a chunk before the pixels whose sum is checked here
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # JPEG markers without a length
_EXIF = b"Exif\0\0"
_XMP_ORIENTATION = b"tiff:Orientation"
_ORIENTATION = 0x0112
_EXIF_SIZES = (0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8)  # bytes of a value, by its kind


class _Doubt(Exception):
    """Something is not as usual."""


class _Bytes:
    """A file read by place; its first bytes are at hand."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._first = os.read(file, _FIRST)
        self.size = os.fstat(file).st_size

    def at(self, place: int, count: int) -> bytes:
        """Exactly ``count`` bytes. Raises _Doubt where the file is shorter."""
        piece = self._first[place : place + count]
        if len(piece) < count:
            os.lseek(self._file, place, os.SEEK_SET)
            piece = os.read(self._file, count)
        if len(piece) < count:
            raise _Doubt
        return piece


def header_size(path: Path) -> Size | None:
    """Width and height as shown (EXIF rotation applied), or None where a full reader has to look."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError:
        return None
    try:
        return _size(_Bytes(file))
    except (_Doubt, OSError, struct.error, IndexError):
        return None
    finally:
        os.close(file)


def _size(data: _Bytes) -> Size:
    start = data.at(0, 12)
    if start.startswith(_PNG):
        width, height, orientation = _png(data)
    elif start.startswith(b"\xff\xd8\xff"):
        width, height, orientation = _jpeg(data)
    elif start.startswith(b"RIFF") and start.endswith(b"WEBP"):
        width, height, orientation = _webp(data)
    else:
        raise _Doubt
    if min(width, height) < 1 or width * height > _MANY:
        raise _Doubt
    return (height, width) if orientation in TURNED else (width, height)


def _png(data: _Bytes) -> tuple[int, int, int]:
    place = len(_PNG)
    pixels = False
    width = height = 0
    while True:
        length, kind = struct.unpack(">I4s", data.at(place, 8))
        # Notes may hold a rotation in several ways.
        if kind in _PNG_NOTES and not _is_plain_text(data, place + 8, length, kind):
            raise _Doubt
        if not pixels:
            if length > _PNG_LONGEST:
                raise _Doubt
            if kind != b"IDAT":
                body = data.at(place + 8, length + 4)
                if zlib.crc32(kind + body[:-4]) != int.from_bytes(body[-4:], "big"):
                    raise _Doubt
            if not width:
                if kind != b"IHDR" or length != 13:
                    raise _Doubt
                width, height = struct.unpack(">II", body[:8])
            elif kind in (b"acTL", b"fdAT", b"IEND"):
                raise _Doubt
        if kind == b"IDAT" and not pixels:
            pixels = True
            place = _last_pixels(data, place, length)
            (length,) = struct.unpack(">I", data.at(place, 4))
        place += length + 12
        if kind == b"IEND" or (pixels and place >= data.size):
            return width, height, 1


def _last_pixels(data: _Bytes, place: int, length: int) -> int:
    """Where the last chunk of pixels begins, or one before it. ``place`` and ``length``: the first one's.

    All but the last are of one length nearly always, and there may be hundreds of them.
    """
    count = (data.size - place) // (length + 12)
    for further in (count, count - 1):
        there = place + further * (length + 12)
        if place < there <= data.size - 12:
            held, kind = struct.unpack(">I4s", data.at(there, 8))
            if kind == b"IDAT" and 0 < held <= length:
                return there
    return place


def _is_plain_text(data: _Bytes, place: int, length: int, kind: bytes) -> bool:
    """Whether a note is text about other things than EXIF, such as how a picture was made."""
    name = data.at(place, min(length, 80)).partition(b"\0")[0]
    return kind != b"eXIf" and not name.startswith((b"XML:com.adobe", b"Raw profile"))


def _jpeg(data: _Bytes) -> tuple[int, int, int]:
    place = 2
    size: Size | None = None
    orientation: int | None = None
    while True:
        mark, code = data.at(place, 2)
        if mark != 0xFF or code in _ALONE or code in (0x00, 0xFF, 0xD9):
            raise _Doubt
        (length,) = struct.unpack(">H", data.at(place + 2, 2))
        if length < 2:
            raise _Doubt
        if code == 0xDA:
            if size is None:
                raise _Doubt
            return *size, orientation or 1
        if code in _FRAMES:
            bits, height, width, layers = struct.unpack(">BHHB", data.at(place + 4, 6))
            if size is not None or bits != 8 or layers not in (1, 3, 4) or length != 8 + 3 * layers:
                raise _Doubt
            size = (width, height)
        elif code == 0xE1:
            orientation = _of_note(data.at(place + 4, length - 2), orientation)
        elif code == 0xE2 and data.at(place + 4, 4) == b"MPF\0":
            raise _Doubt
        place += 2 + length


def _of_note(note: bytes, before: int | None) -> int | None:
    """The orientation after a JPEG's note of application 1; ``before``: what was known without it."""
    if note.startswith(_EXIF):
        if before is not None:
            raise _Doubt
        return _of_exif(note[len(_EXIF) :])
    if _XMP_ORIENTATION in note:
        raise _Doubt
    return before


def _of_exif(block: bytes) -> int:
    """The orientation in an EXIF block, 1 where it has none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        raise _Doubt
    (start,) = struct.unpack_from(f"{order}I", block, 4)
    (count,) = struct.unpack_from(f"{order}H", block, start)
    for row in range(count):
        tag, kind, values, held = struct.unpack_from(f"{order}HHII", block, start + 2 + 12 * row)
        if tag == _ORIENTATION:
            if kind != 3 or values != 1:
                raise _Doubt
            return int(held) >> 16 if order == ">" else int(held) & 0xFFFF
        # Pillow stops at an entry that points behind the end.
        size = _EXIF_SIZES[kind] * values
        if not size or (size > 4 and held + size > len(block)):
            raise _Doubt
    return 1


def _webp(data: _Bytes) -> tuple[int, int, int]:
    end = 8 + int.from_bytes(data.at(4, 4), "little")
    # Half a file is for the full reader to refuse.
    if end > data.size:
        raise _Doubt
    kind, body = data.at(12, 4), data.at(20, 10)
    if kind == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", body[6:])
        return width & 0x3FFF, height & 0x3FFF, 1
    if kind == b"VP8L" and body[0] == 0x2F:
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, 1
    # EXIF, XMP and moving pictures: flags 8, 4 and 2.
    if kind == b"VP8X" and not body[0] & 0b1110:
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1, 1
    raise _Doubt
