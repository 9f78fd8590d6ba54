"""What a picture may ask for before anything of it is decoded: pixels, notes, parts, frames.

Decoders believe what a file says of itself. A directory of 65,535 entries that all point at one megabyte takes 65 GB, a
comment of many blocks is copied once for each block, two million frames are all visited to be counted. The outlines of
the usual containers are read here first, with a few reads of a few bytes; pixels are not looked at. Sources: the
PNG, JPEG (ITU T.81), Exif 2.3, TIFF 6.0, BigTIFF, WebP container and GIF89a specifications.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

MOST_PIXELS = 178_956_970  # where Pillow itself calls a picture an attack
MOST_NOTES = 16 << 20  # bytes of EXIF, XMP, text and profiles in a picture
MOST_VALUES = (
    64 << 20
)  # bytes that the entries of an EXIF directory name together, shared ones counted each time
MOST_TIFF_BYTES = 256 << 20  # the same in a TIFF, for entries of bytes, as layers of editors are
MOST_TIFF_NUMBERS = 8 << 20  # the same for entries of numbers, such as the places of strips
MOST_ENTRIES = 4096  # of a directory
MOST_PARTS = 100_000  # chunks, segments or blocks of a file
MOST_BLOCKS = 2_000_000  # of a GIF, whose blocks have 255 bytes at most
MOST_COMMENT = 1 << 20  # bytes of the comments of a GIF
MOST_FRAMES = 10_000
MOST_WHOLE = 256 << 20  # bytes of a file that a decoder reads at once, and compressed as these are
_EXIF = b"Exif\0\0"
_SUB_DIRECTORY = 0x8769
_KIND_BYTES = {
    1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8,
}  # fmt: skip
_BYTE_KINDS = frozenset({1, 2, 6, 7})
_ALONE = frozenset(
    {0x00, 0x01, 0xFF, *range(0xD0, 0xDA)}
)  # after 0xFF: no marker, or a JPEG marker without a length


class PictureBound(ValueError):
    """A picture that asks for more than is given to one. The message says of what, without the path."""


class PixelBound(PictureBound):
    """A picture of more pixels than are decoded."""


def check_pixels(size: tuple[int, int], most: int = MOST_PIXELS) -> None:
    """Raise PixelBound for a picture of more than ``most`` pixels."""
    width, height = size
    if width * height > most:
        raise PixelBound(
            f"{width} x {height} is {width * height / 1e6:,.0f} million pixels, more than {most / 1e6:,.0f} million"
        )


def check_outline(file: BinaryIO) -> None:
    """Read a picture's outline. Raises PictureBound for one that is beyond a bound, OSError.

    What is damaged or of another make passes; its decoder has to say what is wrong with it.
    """
    data = _Data(file)
    start = data.at(0, 12)
    try:
        if start.startswith(b"\x89PNG\r\n\x1a\n"):
            _check_png(data)
        elif start.startswith(b"\xff\xd8\xff"):
            _check_jpeg(data)
        elif start.startswith(b"RIFF") and start.endswith(b"WEBP"):
            _check_whole(data, "WebP")
            _check_webp(data)
        elif start.startswith((b"GIF87a", b"GIF89a")):
            _check_gif(data)
        elif start.startswith((b"II", b"MM")):
            check_directory(data, tiff=True)
        elif start[4:8] == b"ftyp" or start.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
            _check_whole(data, "AVIF, HEIC or JPEG XL")
    except (struct.error, IndexError):
        return


class _Data:
    """A file read by place, bytes that are not there as none."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, os.SEEK_END)

    def at(self, place: int, count: int) -> bytes:
        """Up to ``count`` bytes from ``place`` on."""
        if place >= self.size:
            return b""
        self._file.seek(place)
        return self._file.read(count)


class _Block(_Data):
    """The same of bytes."""

    def __init__(self, block: bytes) -> None:
        self._block = block
        self.size = len(block)

    def at(self, place: int, count: int) -> bytes:
        return self._block[place : place + count]


def _check_whole(data: _Data, kind: str) -> None:
    if data.size > MOST_WHOLE:
        raise PictureBound(f"{kind} of {_megabytes(data.size)}, more than {_megabytes(MOST_WHOLE)}")


def _check_notes(count: int, most: int = MOST_NOTES) -> None:
    if count > most:
        raise PictureBound(
            f"EXIF, texts and profiles of {_megabytes(count)}, more than {_megabytes(most)}; take them out "
            "(exiftool -all= FILE)"
        )


def _check_parts(count: int, frames: int = 0, most: int = MOST_PARTS) -> None:
    if count > most:
        raise _too_many_parts(most)
    if frames > MOST_FRAMES:
        raise PictureBound(f"more than {MOST_FRAMES:,} frames")


def _too_many_parts(most: int = MOST_PARTS) -> PictureBound:
    return PictureBound(f"more than {most:,} parts in its file; save it anew")


def _megabytes(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MB"


# -------------------------------------------------------------------------------- containers


def _check_png(data: _Data) -> None:
    place, notes, parts = 8, 0, 0
    while len(head := data.at(place, 8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        parts += 1
        _check_parts(parts)
        if kind not in (b"IDAT", b"fdAT"):
            notes += length
            _check_notes(min(notes, data.size))
        if kind == b"eXIf":
            check_exif(data.at(place + 8, length))
        if kind == b"IEND":
            return
        place += length + 12


def _check_jpeg(data: _Data) -> None:
    place, notes = 2, 0
    exif: list[bytes] = []
    for _ in range(MOST_PARTS):
        head = data.at(place, 10)
        if len(head) < 2 or head[:2] == b"\xff\xda":
            # A block that is longer than a segment goes on in the next one.
            return check_exif(b"".join(exif))
        if head[0] != 0xFF or head[1] in _ALONE:
            # Junk and padding, which Pillow passes over.
            place += 2 if head[0] == 0xFF and head[1] != 0xFF else 1
            continue
        length = max(2, int.from_bytes(head[2:4], "big"))
        if 0xE0 <= head[1] <= 0xEF or head[1] == 0xFE:
            notes += length
            _check_notes(notes)
        if head[1] == 0xE1 and head[4:] == _EXIF:
            exif.append(data.at(place + 10, length - 8))
        place += 2 + length
    raise _too_many_parts()


def _check_webp(data: _Data) -> None:
    place, notes, parts, frames = 12, 0, 0, 0
    while len(head := data.at(place, 8)) == 8:
        kind, length = struct.unpack("<4sI", head)
        parts += 1
        frames += kind == b"ANMF"
        _check_parts(parts, frames)
        if kind not in (b"VP8 ", b"VP8L", b"ALPH", b"ANMF"):
            notes += length
            _check_notes(min(notes, data.size))
        if kind == b"EXIF":
            check_exif(data.at(place + 8, length))
        place += 8 + length + length % 2


def _check_gif(data: _Data) -> None:
    """Everything in front of the second frame's pixels, which is all that is read of a GIF."""
    place = 13 + _table(data.at(10, 1)[0])
    notes, parts, frames = 0, 0, 0
    while frames < 2 and (kind := data.at(place, 1)) not in (b"", b";"):
        parts += 1
        if kind not in (b"!", b","):
            place += 1
        else:
            frames += kind == b","
            place += 2 if kind == b"!" else 11 + _table(data.at(place + 9, 1)[0])
            while (size := data.at(place, 1)) not in (b"", b"\0"):
                parts += 1
                # A comment is copied whole for each of its blocks.
                notes += size[0] if kind == b"!" else 0
                _check_notes(notes, MOST_COMMENT)
                _check_parts(parts, most=MOST_BLOCKS)
                place += size[0] + 1
            place += 1
        _check_parts(parts, most=MOST_BLOCKS)


def _table(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


# -------------------------------------------------------------------------------- directories


def check_exif(block: bytes) -> None:
    """Raise PictureBound for an EXIF block (with or without ``Exif`` in front) that names more than it holds."""
    try:
        check_directory(_Block(block.removeprefix(_EXIF)), tiff=False)
    except (struct.error, IndexError):
        return  # Pillow leaves what is damaged


def check_directory(data: _Data, *, tiff: bool) -> None:
    """Raise PictureBound where the entries of a TIFF's or an EXIF block's directories name too much together."""
    head = data.at(0, 16)
    order = "<" if head[:2] == b"II" else ">"
    big = head[2] == 43  # as Pillow has it
    start = (
        struct.unpack_from(f"{order}Q", head, 8)[0] if big else struct.unpack_from(f"{order}I", head, 4)[0]
    )
    sums = [0, 0]
    if deeper := _sum_entries(data, start, order, big, sums):
        _sum_entries(data, deeper, order, big, sums)
    most = (MOST_TIFF_NUMBERS, MOST_TIFF_BYTES) if tiff else (MOST_VALUES, MOST_VALUES)
    if sums[0] > most[0] or sums[1] > most[1]:
        raise PictureBound(
            f"a directory of {_megabytes(sum(sums))} of notes; take them out (exiftool -all= FILE)"
        )


def _sum_entries(data: _Data, start: int, order: str, big: bool, sums: list[int]) -> int:
    """Add what a directory's entries name to ``sums`` (numbers, bytes); returns the place of its EXIF directory, 0 for
    none. Raises PictureBound for too many entries.
    """
    count_form, entry_form, inside = (
        (f"{order}Q", f"{order}HHQQ", 8) if big else (f"{order}H", f"{order}HHII", 4)
    )
    (count,) = struct.unpack(count_form, data.at(start, struct.calcsize(count_form)))
    width = struct.calcsize(entry_form)
    rows = data.at(start + struct.calcsize(count_form), min(count, MOST_ENTRIES + 1) * width)
    if len(rows) // width > MOST_ENTRIES:
        raise PictureBound(
            f"a directory of more than {MOST_ENTRIES:,} notes; take them out (exiftool -all= FILE)"
        )
    deeper = 0
    for tag, kind, values, held in struct.iter_unpack(entry_form, rows[: len(rows) // width * width]):
        size = _KIND_BYTES.get(kind, 0) * values
        if tag == _SUB_DIRECTORY:
            deeper = held
        elif inside < size <= data.size:
            sums[kind in _BYTE_KINDS] += size
    return deeper
