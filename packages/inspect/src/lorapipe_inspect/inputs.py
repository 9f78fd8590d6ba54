"""What the commands work on: files, folders, lists of files on standard input, and a network that comes through it."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lorapipe_engine.command.records import STREAM, Record, expand_folders, read_list
from lorapipe_engine.command.text import one_line
from lorapipe_engine.command.tool import VERBOSE, complain, say, show_trace
from lorapipe_engine.errors import InputError, LoraError, naming
from lorapipe_engine.files.picklefile import open_weights
from lorapipe_engine.files.tensorfile import WeightFile

if TYPE_CHECKING:
    from lorapipe_engine.networks.describe import Network

SUFFIXES = (".safetensors",)
STREAM_NAME = "standard input"


@dataclass(frozen=True)
class Input:
    """One file to look into. ``record`` is what names it, None for the network that comes through ``stream``.

    ``listed``: it was on a list from standard input, not among the words of the command line. ``inner``: the folders
    between it and the folder that was named.
    """

    record: Record | None
    listed: bool = False
    stream: BinaryIO | None = None
    inner: Path = Path()

    @property
    def path(self) -> Path | None:
        return self.record.path if self.record else None

    @property
    def name(self) -> str:
        """The path as it was given; "-" for a stream."""
        return str(self.record.path) if self.record else STREAM

    def open(self) -> WeightFile:
        """The open file. Raises InputError in one line that names it."""
        if self.record is not None:
            return open_weights(self.record.path)
        if self.stream is None:
            raise InputError("nothing to read from")
        return open_weights(self.stream)


def find_inputs(
    words: Sequence[str], stdin: BinaryIO | None = None, *, recursive: bool | None = None
) -> Iterator[Input]:
    """The files that ``words`` name, as they come; a folder gives its safetensors files, sorted, with ``recursive``
    those of its folders too (None: the command cannot be asked for that).

    "-", or no word at all, is ``stdin`` (the process's own by default): one safetensors file if its first bytes
    cannot be text, else a list of paths and JSON records (:mod:`lorapipe_engine.command.records`). Raises InputError
    for folders without such files, for lists that cannot be read, and instead of waiting at a terminal.
    """
    for word in words or (STREAM,):
        if word != STREAM:
            yield from _expand(Record(Path(word)), recursive, listed=False)
            continue
        stream = stdin or (sys.stdin.buffer if sys.stdin is not None else None)
        if stream is None or stream.isatty():
            raise InputError("nothing to look into: name files or folders, or pipe paths or a network in")
        start = stream.read(8)
        joined = io.BufferedReader(_Joined(start, stream))
        if _is_text(start):
            for record in read_list(joined, STREAM_NAME):
                yield from _expand(record, recursive, listed=True)
        else:
            yield Input(None, stream=joined)


def each_file(
    words: Sequence[str], work: Callable[[Input, WeightFile], bool | None], *, recursive: bool = False
) -> int:
    """Do ``work`` on every open file; the exit status. What fails is told in a line, the others still get done.

    0 if all went well; 1 if ``work`` answered False, which is a problem found, or if some files failed; the
    error's own status (2 for unreadable input) if all did. Raises InputError where there are no files.
    """
    return each_input(words, lambda one: _opened(one, work), recursive=recursive)


def each_input(words: Sequence[str], work: Callable[[Input], bool | None], *, recursive: bool = False) -> int:
    """As :func:`each_file`, for work that opens files itself."""
    return work_through(find_inputs(words, recursive=recursive), work)


def work_through(inputs: Iterable[Input], work: Callable[[Input], bool | None]) -> int:
    """As :func:`each_input`, for inputs that were found already."""
    sound, problems, codes = 0, 0, []
    for one in inputs:
        try:
            if work(one) is False:
                problems += 1
            else:
                sound += 1
        except LoraError as error:
            codes.append(error.exit_code)
            _complain(error)
    if not (sound or problems or codes):
        raise InputError("nothing to look into: the list on standard input is empty")
    if codes and not (sound or problems):
        return max(codes)
    return 1 if codes or problems else 0


def described(file: WeightFile) -> Network:
    """The network in an open file, told in a note where it is not known what it changes. Raises InputError."""
    from lorapipe_engine.networks.describe import describe_network
    from lorapipe_engine.networks.read import why_unknown

    network = describe_network(file)
    if why := why_unknown(network):
        say(f"note: {one_line(why)}")
    return network


def read_one(word: str) -> Input:
    """The single file that ``word`` names ("-" is a network on standard input). Raises InputError for several."""
    files = list(find_inputs([word]))
    if len(files) != 1:
        raise InputError(f"{word}: has {len(files)} files, here goes one")
    return files[0]


def _opened(one: Input, work: Callable[[Input, WeightFile], bool | None]) -> bool | None:
    with one.open() as file, naming(one.name):
        return work(one, file)


def _expand(record: Record, recursive: bool | None, *, listed: bool) -> Iterator[Input]:
    for file in expand_folders([record], SUFFIXES, recursive=recursive):
        is_itself = file.path == record.path
        yield Input(file, listed, inner=Path() if is_itself else file.path.parent.relative_to(record.path))


def _complain(error: LoraError) -> None:
    if VERBOSE.get():
        show_trace(error)
    complain(one_line(error))


def _is_text(start: bytes) -> bool:
    """Whether a list begins so. The length of a header is eight bytes of which the upper are zero; a list has single
    NUL bytes at most.
    """
    return b"\0\0" not in start and all(byte in b"\0\t\n\r\x1b" or byte >= 32 for byte in start)


class _Joined(io.RawIOBase):
    """A stream with the bytes that were read ahead put back in front."""

    name = STREAM_NAME

    def __init__(self, start: bytes, rest: BinaryIO) -> None:
        self._start = start
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        if self._start:
            piece, self._start = self._start[: len(view)], self._start[len(view) :]
        else:
            # What has come so far is enough, so that slow lists go on line by line.
            read = getattr(self._rest, "read1", self._rest.read)
            piece = read(len(view))
        view[: len(piece)] = piece
        return len(piece)
