"""Safetensors files: headers checked to the byte, tensors read one by one, files written whole or not at all.

Layout: 8 bytes header length (little-endian), a JSON header ``{name: {dtype, shape, data_offsets}}`` with an
optional ``__metadata__`` of strings, then the data without hole or overlap. Names are data, never paths.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self, TypeGuard

import numpy as np

from lorapipe_engine.errors import ConfigError, InputError, OutputError
from lorapipe_engine.files.bytesource import (
    MemorySource,
    OverSource,
    Source,
    open_source,
    other_format,
    read_up_to,
    reason,
    take,
)
from lorapipe_engine.files.dtypes import DTYPE_BITS, Array, Encoded, as_encoded, byte_count, decode, encode
from lorapipe_engine.files.writing.atomic import atomic_write, check_output

__all__ = [
    "Encoded",
    "TensorFile",
    "TensorInfo",
    "WeightFile",
    "atomic_write",
    "build_header",
    "check_weights_output",
    "encode",
    "lay_out",
    "open_tensors",
    "write_tensors",
]

MAX_HEADER = 100_000_000  # as the official library has it
_DTYPE_ORDER = {dtype: index for index, dtype in enumerate(DTYPE_BITS)}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor in a file: type as safetensors spells it, shape, and its bytes in the data part."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


class WeightFile(Protocol):
    """What every reader of weights offers, whatever the format."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview: ...

    def raw_into(self, name: str, buffer: memoryview, start: int = 0) -> None: ...

    def read(self, name: str) -> Array: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class TensorFile(OverSource):
    """An open safetensors file; a context manager.

    ``tensors`` are in the order of their data. ``header_bytes`` is the length of the JSON header; the data
    part begins 8 bytes later. Tensors are read when asked for, into memory of their own; threads may share
    the file.
    """

    def __init__(
        self,
        path: Path,
        metadata: dict[str, str],
        tensors: dict[str, TensorInfo],
        header_bytes: int,
        source: Source,
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.tensors = tensors
        self.header_bytes = header_bytes
        self._source = source

    @property
    def data_bytes(self) -> int:
        """Length of the data part."""
        return max((info.end for info in self.tensors.values()), default=0)

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        """Bytes of a tensor as they are in the file, or only bytes ``start`` to ``stop`` of it; writable.

        Raises KeyError for an unknown name and InputError if the file cannot be read any more.
        """
        info = self.tensors[name]
        first, last, _ = slice(start, stop).indices(info.size)
        return self.data(info.start + first, info.start + max(first, last))

    def read(self, name: str) -> Array:
        """A tensor as numpy array: float types up to 32 bits as float32, all others as they are."""
        info = self.tensors[name]
        return decode(info.dtype, self.raw(name), info.shape)

    def raw_into(self, name: str, buffer: memoryview, start: int = 0) -> None:
        """Fill ``buffer`` with the tensor's bytes from ``start`` on, for who reads piece by piece into one place."""
        self.data_into(buffer, self.tensors[name].start + start)

    def copy_into(self, name: str, descriptor: int, target_offset: int, start: int, stop: int) -> int:
        """Have the system copy bytes ``start`` to ``stop`` of a tensor into another open file; how many it did.

        That is 0 where it cannot; what is left is for the caller to read and write.
        """
        first = 8 + self.header_bytes + self.tensors[name].start + start
        return self._source.copy_into(descriptor, first, stop - start, target_offset)

    def data(self, start: int, stop: int) -> memoryview:
        """Bytes ``start`` to ``stop`` of the data part, over tensors' borders."""
        # Not a bytearray, which would be filled with zeros before.
        buffer: memoryview = memoryview(np.empty(stop - start, np.uint8))  # type: ignore[arg-type]  # arrays are buffers
        self.data_into(buffer, start)
        return buffer

    def data_into(self, buffer: memoryview, start: int) -> None:
        """Fill ``buffer`` with the bytes of the data part from ``start`` on."""
        try:
            self._source.read_into(buffer, 8 + self.header_bytes + start)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: cannot be read any more ({error})") from error


# ------------------------------------------------------------------------------------------------ reading


def open_tensors(path: Path | BinaryIO) -> TensorFile:
    """Open a safetensors file, or read one from a binary stream such as standard input into memory.

    Only the header of a file is read. Raises InputError with one line for anything malformed; whatever a
    header claims, no more memory is taken than there are bytes.
    """
    if not isinstance(path, Path):
        return _read_stream(path)
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe with a name
        with path.open("rb") as stream:
            return _read_stream(stream)
    source = open_source(path)
    try:
        return read_tensors(path, source)
    except BaseException:
        source.close()
        raise


def read_tensors(path: Path, source: Source) -> TensorFile:
    """The safetensors file in ``source``; ``path`` names it in messages. Raises InputError."""
    try:
        length = _header_length(bytes(take(source, 0, 8)))
        if length > source.size - 8:
            raise _BadHeaderError(
                f"is cut short: its header is {length:,} bytes long, the file {source.size:,}"
            )
        metadata, tensors, end = _parse_header(bytes(take(source, 8, length)))
        _check_size(end, source.size - 8 - length)
    except _BadHeaderError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    return TensorFile(path, metadata, tensors, length, source)


def _read_stream(stream: BinaryIO) -> TensorFile:
    name = getattr(stream, "name", None)
    path = Path(name if isinstance(name, str) else "<stream>")
    try:
        # Nothing that cannot be a header is waited for, nor anything after the data's end but one byte.
        start = read_up_to(stream, 8)
        length = _header_length(bytes(start))
        text = read_up_to(stream, length)
        if len(text) < length:
            raise _BadHeaderError(
                f"is cut short: its header is {length:,} bytes long, {len(text):,} are there"
            )
        _, _, end = _parse_header(bytes(text))
        data = start + text + read_up_to(stream, end + 1)
    except _BadHeaderError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    return read_tensors(path, MemorySource(data))


class _BadHeaderError(Exception):
    """What is wrong with a header, without the file's name."""


def _header_length(start: bytes) -> int:
    if len(start) < 8:
        raise _BadHeaderError(f"is {'empty' if not start else 'too short'}, not a safetensors file")
    length = int.from_bytes(start, "little")
    # The first bytes of a zip file can be read as a length that is not too large.
    if length > MAX_HEADER or start.startswith(b"PK\x03\x04"):
        known = other_format(start)
        known = f"but {known}" if known else f"(its header would be {length:,} bytes long)"
        raise _BadHeaderError(f"is not a safetensors file {known}")
    return length


def _parse_header(text: bytes) -> tuple[dict[str, str], dict[str, TensorInfo], int]:
    """Metadata, tensors in the order of their data, and the data's length. Raises _BadHeaderError."""
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise _BadHeaderError("its header is not UTF-8") from None
    except RecursionError:
        raise _BadHeaderError("its header is nested too deeply") from None
    except ValueError as error:  # also numbers of thousands of digits
        raise _BadHeaderError(f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise _BadHeaderError("its header is not a JSON object")
    metadata = _check_metadata(header.pop("__metadata__", {}))
    tensors = {name: _tensor_info(name, entry) for name, entry in header.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)))
    end = 0
    for name, info in ordered.items():
        if info.start != end:
            problem = "overlaps the one before" if info.start < end else "leaves a hole before it"
            raise _BadHeaderError(f"tensor {quote(name)} {problem}")
        end = info.end
    return metadata, ordered, end


def _check_size(end: int, data_size: int) -> None:
    if end > data_size:
        raise _BadHeaderError(
            f"is cut short: its tensors take {end:,} bytes, the file has {data_size:,} for them"
        )
    if end < data_size:
        raise _BadHeaderError(f"has {data_size - end:,} bytes after its last tensor, which belong to none")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise _BadHeaderError("its header names something twice")
    return table


def _no_constant(name: str) -> None:
    raise _BadHeaderError(f"its header is not JSON ({name})")


def _check_metadata(metadata: object) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _BadHeaderError("its metadata is not a table of strings")
    if not all(_is_text(text) for pair in metadata.items() for text in pair):
        raise _BadHeaderError("its metadata has broken characters")
    return metadata


def _is_text(text: str) -> bool:
    """Halves of UTF-16 pairs get through JSON escapes but cannot be written again."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _tensor_info(name: str, entry: object) -> TensorInfo:
    if not isinstance(entry, dict):
        raise _BadHeaderError(f"the entry of tensor {quote(name)} is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise _BadHeaderError(f"tensor {quote(name)} has the unknown type {quote(dtype)}")
    if not _is_text(name):
        raise _BadHeaderError(f"the name of tensor {quote(name)} has broken characters")
    if not _are_sizes(shape):
        raise _BadHeaderError(f"tensor {quote(name)} has a shape that is not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _BadHeaderError(f"tensor {quote(name)} has data_offsets that are not a range of bytes")
    info = TensorInfo(dtype, tuple(shape), *offsets)
    if byte_count(dtype, info.shape) != info.size:
        raise _BadHeaderError(
            f"tensor {quote(name)} of type {dtype} and shape {quote(shape)} does not fill {info.size:,} bytes"
        )
    return info


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    # The bound keeps products small; bool is an int in Python, not in JSON.
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(type(n) is int and 0 <= n < 1 << 63 for n in value)
    )


def quote(value: object) -> str:
    """A name from a file for a message: on one line, control characters escaped, not too long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


# ------------------------------------------------------------------------------------------------ writing


def build_header(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, TensorInfo]]:
    """Header, its length in front, and places of tensors of which type and shape are known, not yet the data.

    Tensors stand in the official library's order, wide types first and then by name, so that hashes of the
    data agree with its files; metadata are sorted, so that equal inputs give equal bytes. Raises OutputError
    for names and metadata that a header cannot hold.
    """
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = dict(sorted(metadata.items()))
    ordered = sorted(
        tensors.items(), key=lambda item: (-_DTYPE_ORDER[item[1][0]], item[0].encode(errors="replace"))
    )
    places = {}
    end = 0
    for name, (dtype, shape) in ordered:
        size = byte_count(dtype, shape)
        if size is None:
            raise OutputError(
                f"tensor {quote(name)} of type {dtype} and shape {shape} does not fill whole bytes"
            )
        places[name] = TensorInfo(dtype, tuple(shape), end, end + size)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    if "__metadata__" in tensors or not all(map(_is_text, places)):
        raise OutputError("a tensor has a name that a safetensors file cannot hold")
    if metadata and not all(
        isinstance(text, str) and _is_text(text) for pair in metadata.items() for text in pair
    ):
        raise OutputError("metadata of a safetensors file must be plain text")
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise OutputError(
            f"names and metadata take {len(text):,} bytes, more than a safetensors file may have"
        )
    return len(text).to_bytes(8, "little") + text, places


# What programs take for pickles, or ONNX's and numpy's files.
_OTHER_FORMATS = (".ckpt", ".pt", ".pth", ".bin", ".onnx", ".gguf", ".npz")


def check_weights_output(path: Path, *, force: bool, size: int = 0) -> None:
    """As :func:`~lorapipe_engine.files.writing.atomic.check_output`, for weights: these are always safetensors.

    Raises ConfigError for the name of another format, under which programs would not understand them.
    """
    _check_name(path)
    check_output(path, force=force, size=size)


def _check_name(path: Path) -> None:
    if path.suffix.lower() in _OTHER_FORMATS:
        raise ConfigError(
            f"{path}: would hold safetensors under another format's name; call it {path.stem}.safetensors"
        )


def lay_out(
    tensors: Mapping[str, Array | Encoded], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, list[memoryview]]:
    """The pieces of a safetensors file: its header, and the tensors' bytes in order. Raises OutputError."""
    encoded = {name: _encoded(name, tensor) for name, tensor in tensors.items()}
    kinds = {name: (tensor.dtype, tensor.shape) for name, tensor in encoded.items()}
    header, places = build_header(kinds, metadata)
    return header, [_bytes_of(name, encoded[name], info.size) for name, info in places.items()]


def write_tensors(
    path: Path | BinaryIO,
    tensors: Mapping[str, Array | Encoded],
    metadata: Mapping[str, str] | None = None,
    *,
    force: bool = False,
    inside: Path | None = None,
) -> None:
    """Write a safetensors file, whole or not at all (see :func:`atomic_write`), or write one to a stream.

    Arrays keep their numpy type; :func:`encode` gives others. Raises OutputError if the file exists and not
    ``force``, if it cannot be written, or for names, metadata and array types that such a file cannot hold.
    """
    header, blocks = lay_out(tensors, metadata)
    if isinstance(path, Path):
        size = len(header) + sum(map(len, blocks))
        with atomic_write(path, force=force, size=size, inside=inside) as file:
            file.writelines([header, *blocks])
    else:
        path.writelines([header, *blocks])


def write_planned(
    path: Path,
    kinds: Mapping[str, tuple[str, tuple[int, ...]]],
    make: Callable[[str], Encoded],
    metadata: Mapping[str, str] | None = None,
    *,
    force: bool = False,
) -> None:
    """Write a safetensors file whose types and shapes are known, one tensor after another as ``make`` gives them.

    So a file takes the memory of its largest tensor. Raises OutputError as :func:`write_tensors` does.
    """
    _check_name(path)
    header, places = build_header(kinds, metadata)
    size = len(header) + sum(place.size for place in places.values())
    with atomic_write(path, force=force, size=size) as file:
        file.write(header)
        for name, place in places.items():
            file.write(_bytes_of(name, make(name), place.size))


def _encoded(name: str, tensor: Array | Encoded) -> Encoded:
    try:
        return tensor if isinstance(tensor, Encoded) else as_encoded(tensor)
    except ValueError as error:
        raise OutputError(f"tensor {quote(name)}: {error}") from error


def _bytes_of(name: str, tensor: Encoded, size: int) -> memoryview:
    view: memoryview = memoryview(tensor.data)  # type: ignore[arg-type]  # numpy arrays are buffers
    # A view without elements cannot be cast.
    block = view.cast("B") if view.nbytes else memoryview(b"")
    if len(block) != size:
        raise OutputError(f"tensor {quote(name)} should have {size:,} bytes, but has {len(block):,}")
    return block
