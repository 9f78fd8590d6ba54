"""Bytes to read from any place: an open file, or memory filled from a stream."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from lorapipe_engine.errors import InputError

CHUNK = 1 << 20


class Source(Protocol):
    """``size`` bytes that can be read from any offset."""

    size: int

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` on. Raises OSError if there are fewer."""
        ...

    def copy_into(self, descriptor: int, offset: int, count: int, target_offset: int) -> int:
        """Let the system copy ``count`` bytes from ``offset`` on into another file; how many it did, which is 0
        where it does not do such things.
        """
        ...

    def close(self) -> None: ...


class FileSource:
    """A file on the disk; threads may share it.

    It is read, not mapped: a mapped file that somebody cuts short kills the process, and whole checkpoints
    would count as its memory.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._lock = threading.Lock()
        self.size = os.fstat(file.fileno()).st_size

    def read_into(self, buffer: memoryview, offset: int) -> None:
        done = 0
        while done < len(buffer):
            count = self._read(buffer[done : done + (1 << 30)], offset + done)
            if count == 0:
                raise OSError("the file has become shorter")
            done += count

    def _read(self, buffer: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self.file.fileno(), [buffer], offset)
        with self._lock:  # Windows
            self.file.seek(offset)
            return int(self.file.readinto(buffer))  # type: ignore[attr-defined]

    def copy_into(self, descriptor: int, offset: int, count: int, target_offset: int) -> int:
        if not hasattr(os, "copy_file_range"):
            return 0
        done = 0
        with suppress(
            OSError
        ):  # of other file systems, or no support; a full disk tells when it is written to
            while done < count:
                step = os.copy_file_range(
                    self.file.fileno(), descriptor, count - done, offset + done, target_offset + done
                )
                if step == 0:
                    break
                done += step
        return done

    def close(self) -> None:
        self.file.close()


class MemorySource:
    """Bytes in memory."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = memoryview(data)
        self.size = len(data)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        piece = self._data[offset : offset + len(buffer)]
        if len(piece) < len(buffer):
            raise OSError("the data ends early")
        buffer[:] = piece

    def copy_into(self, descriptor: int, offset: int, count: int, target_offset: int) -> int:
        del descriptor, offset, count, target_offset
        return 0

    def close(self) -> None:
        self._data = memoryview(b"")


class OverSource:
    """What reads from a source and closes it with itself; a context manager."""

    _source: Source

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_source(path: Path) -> FileSource:
    """Open a file for reading. Raises InputError if it is not there or not a readable file."""
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        # Windows answers "permission denied" for folders.
        what = "is a folder, not a weight file" if path.is_dir() else f"cannot be opened: {reason(error)}"
        raise InputError(f"{path}: {what}") from error
    return FileSource(file)


def take(source: Source, offset: int, count: int) -> bytearray:
    """``count`` bytes from ``offset`` on, fewer only at the end of the source."""
    buffer = bytearray(max(0, min(count, source.size - offset)))
    source.read_into(memoryview(buffer), offset)
    return buffer


def read_up_to(stream: BinaryIO, count: int) -> bytearray:
    """``count`` bytes of a stream, fewer only at its end. Memory grows with what arrives."""
    data = bytearray()
    while len(data) < count and (piece := stream.read(min(count - len(data), CHUNK))):
        data += piece
    return data


def reason(error: Exception) -> str:
    """What the operating system has to say."""
    return getattr(error, "strerror", None) or str(error)


def other_format(start: bytes) -> str | None:
    """What a file is, by its first bytes, if it is something that gets mistaken for safetensors."""
    for mark, name in (
        (b"PK\x03\x04", "a zip file, as torch saves checkpoints (.ckpt, .pt)"),
        (b"\x80\x02", "a pickle"),
        (b"\x80\x03", "a pickle"),
        (b"\x80\x04", "a pickle"),
        (b"\x80\x05", "a pickle"),
        (b"GGUF", "a GGUF file"),
        (b"\x89PNG", "a picture (PNG)"),
        (b"\xff\xd8\xff", "a picture (JPEG)"),
        (b"RIFF", "a picture (WebP)"),
        (b"version ", "a Git LFS pointer: the file itself was not downloaded"),
        (b"<", "a web page: the download went wrong"),
    ):
        if start.startswith(mark):
            return name
    return None
