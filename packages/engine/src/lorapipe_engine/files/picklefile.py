"""Weights in torch's own format (.ckpt, .pt, .pth, .bin), read without torch and without running anything.

Such a file is a zip archive of stored, uncompressed entries: ``data.pkl`` describes the objects,
``data/<key>`` are the bytes of the storages that tensors look into. The description is read by
:mod:`lorapipe_engine.files.unpickle`, which knows data only.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

import numpy as np

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.bytesource import FileSource, OverSource, open_source, other_format, reason, take
from lorapipe_engine.files.dtypes import DTYPE_BITS, Array, decode
from lorapipe_engine.files.tensorfile import TensorInfo, WeightFile, open_tensors, quote, read_tensors
from lorapipe_engine.files.unpickle import BadPickleError, Call, Global, Persistent, read_pickle

_STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
    "ComplexFloatStorage": "C64",
}
_DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.float8_e4m3fnuz": "F8_E4M3FNUZ",
    "torch.float8_e5m2fnuz": "F8_E5M2FNUZ",
    "torch.float8_e8m0fnu": "F8_E8M0",
    "torch.uint16": "U16",
    "torch.uint32": "U32",
    "torch.uint64": "U64",
}
_LONGEST_TEXT = 1000


class _BadFileError(Exception):
    """What is wrong with a file, without its name."""


@dataclass(frozen=True, slots=True)
class _View:
    """Where a tensor lies: a storage's place in the file, and the way through it, in elements."""

    storage: int
    offset: int
    strides: tuple[int, ...]


class PickleFile(OverSource):
    """An open torch file with the same interface as :class:`~lorapipe_engine.files.tensorfile.TensorFile`.

    ``tensors`` are those of the ``state_dict`` where there is one, in the order of the file; those of tables
    inside it have dotted names. Their ``start`` is 0 and ``end`` their size. ``metadata``: plain numbers and
    short texts that stand beside the weights, such as "epoch".
    """

    def __init__(self, path: Path, source: FileSource) -> None:
        self.path = path
        self._source = source
        self.tensors: dict[str, TensorInfo] = {}
        self._views: dict[str, _View] = {}
        try:
            entries = _find_entries(source)
            root = _read_description(source, entries)
            self.metadata = _plain_values(root)
            for name, call in _tensors_in(root):
                self.tensors[name], self._views[name] = _resolve(name, call, entries, source.size)
        except _BadFileError as error:
            raise InputError(f"{path}: {error}") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {reason(error)}") from error

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> memoryview:
        """Bytes of a tensor row by row, or only bytes ``start`` to ``stop`` of them; writable.

        Raises KeyError for an unknown name and InputError if the file cannot be read any more.
        """
        info, view = self.tensors[name], self._views[name]
        first, last, _ = slice(start, stop).indices(info.size)
        last = max(first, last)
        width = DTYPE_BITS[info.dtype] // 8
        if view.strides == _row_strides(info.shape) or not info.size:
            return self._bytes(view.storage + view.offset * width + first, last - first)
        reach = 1 + sum((size - 1) * stride for size, stride in zip(info.shape, view.strides, strict=True))
        around = np.frombuffer(self._bytes(view.storage + view.offset * width, reach * width), f"V{width}")
        steps = [stride * width for stride in view.strides]
        rows = np.lib.stride_tricks.as_strided(around, info.shape, steps).tobytes()
        return memoryview(bytearray(rows))[first:last]

    def raw_into(self, name: str, buffer: memoryview, start: int = 0) -> None:
        """Fill ``buffer`` with the tensor's bytes from ``start`` on."""
        buffer[:] = self.raw(name, start, start + len(buffer))

    def read(self, name: str) -> Array:
        """A tensor as numpy array: float types up to 32 bits as float32, all others as they are."""
        info = self.tensors[name]
        return decode(info.dtype, self.raw(name), info.shape)

    def _bytes(self, offset: int, count: int) -> memoryview:
        buffer = memoryview(bytearray(count))
        try:
            self._source.read_into(buffer, offset)
        except (OSError, ValueError) as error:
            raise InputError(f"{self.path}: cannot be read any more ({error})") from error
        return buffer


def open_weights(path: Path | BinaryIO) -> WeightFile:
    """Open a weight file of any format that is read here, by what is in it and whatever its name.

    A binary stream can only be a safetensors file. Raises InputError with one line for all else.
    """
    if not isinstance(path, Path) or not path.is_file():
        return open_tensors(path)
    source = open_source(path)
    try:
        start = bytes(take(source, 0, 16))
        if start.startswith(b"PK\x03\x04"):
            return PickleFile(path, source)
        if other_format(start) == "a pickle" and int.from_bytes(start[:8], "little") > source.size:
            raise InputError(
                f"{path}: is a pickle in torch's format from before 1.6, or no weights at all; "
                "load and save it once with a current torch"
            )
        return read_tensors(path, source)
    except BaseException:
        source.close()
        raise


# ------------------------------------------------------------------------------------------------ the archive


@dataclass(frozen=True, slots=True)
class _Entry:
    offset: int
    size: int


def _find_entries(source: FileSource) -> dict[str, _Entry]:
    """Places of the archive's entries in the file, by their names below its top folder."""
    import zipfile  # slow to import

    try:
        with zipfile.ZipFile(source.file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError) as error:
        raise _BadFileError(f"is a broken zip file, perhaps cut short ({error})") from error
    roots = [info.filename.removesuffix("data.pkl") for info in infos if _is_description(info.filename)]
    if not roots:
        raise _BadFileError("is a zip file, but none that torch has saved (it has no data.pkl)")
    root = min(roots, key=len)
    inside = {info.filename.removeprefix(root): info for info in infos if info.filename.startswith(root)}
    return {name: _entry(info, source) for name, info in inside.items() if _is_needed(name)}


def _is_description(name: str) -> bool:
    return name == "data.pkl" or name.endswith("/data.pkl")


def _is_needed(name: str) -> bool:
    return name in ("data.pkl", "byteorder") or name.startswith("data/")


def _entry(info: Any, source: FileSource) -> _Entry:
    """Place of the data behind an entry's own header: PK 3 4, 22 bytes, lengths of name and extra field."""
    if info.compress_type != 0 or info.flag_bits & 1 or info.compress_size != info.file_size:
        raise _BadFileError(
            "has compressed entries, which torch does not write; unpack and zip it with storing only"
        )
    header = take(source, info.header_offset, 30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise _BadFileError("is a broken zip file (an entry is not where it should be)")
    names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    entry = _Entry(info.header_offset + 30 + names, info.file_size)
    if entry.offset + entry.size > source.size:
        raise _BadFileError("is cut short (an entry reaches over its end)")
    return entry


def _read_description(source: FileSource, entries: Mapping[str, _Entry]) -> dict[Any, Any]:
    """The table of weights, or the table that has it as "state_dict"."""
    order = entries.get("byteorder")
    if order and take(source, order.offset, min(order.size, 16)) == b"big":
        raise _BadFileError("was saved on a big-endian machine, which is not read here")
    entry = entries["data.pkl"]
    try:
        root = read_pickle(io.BytesIO(take(source, entry.offset, entry.size)))
    except BadPickleError as error:
        raise _BadFileError(f"has a broken pickle: {error}") from error
    if not isinstance(root, dict):
        raise _BadFileError(f"holds {_what(root)} instead of a table of weights; save its state_dict()")
    return root


def _what(value: Any) -> str:
    if isinstance(value, Call) and isinstance(value.function, Global):
        return f"an object made by {quote(value.function.name)}"
    return f"a {type(value).__name__}"


def _plain_values(root: Mapping[Any, Any]) -> dict[str, str]:
    return {
        key: str(value)
        for key, value in root.items()
        if isinstance(key, str)
        and (
            isinstance(value, bool | float)
            or _is_short_text(value)
            or (isinstance(value, int) and abs(value) < 1 << 64)
        )
    }


def _is_short_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _LONGEST_TEXT


# ------------------------------------------------------------------------------------------------ tensors


def _tensors_in(root: dict[Any, Any]) -> Iterator[tuple[str, Call]]:
    """Names and rebuild calls of the weights; every table is visited once, however often it is mentioned."""
    inner = root.get("state_dict")
    waiting: list[tuple[str, dict[Any, Any]]] = [("", inner if isinstance(inner, dict) else root)]
    seen: set[int] = set()
    while waiting:
        prefix, table = waiting.pop()
        if id(table) in seen:
            continue
        seen.add(id(table))
        for key, value in table.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict) and len(name) < _LONGEST_TEXT:
                waiting.append((f"{name}.", value))
            elif (call := _rebuild(value)) is not None:
                yield name, call


def _rebuild(value: Any) -> Call | None:
    """The call of ``_rebuild_tensor`` (v2, v3) that makes a tensor, out of what is around it."""
    for _ in range(4):
        if not isinstance(value, Call) or not isinstance(value.function, Global):
            return None
        name, arguments = value.function.name, value.arguments
        if name in (
            "torch._utils._rebuild_tensor",
            "torch._utils._rebuild_tensor_v2",
            "torch._utils._rebuild_tensor_v3",
        ):
            return value
        if (
            name in ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
            and arguments
        ):
            value = arguments[0]
        elif name == "torch._tensor._rebuild_from_type_v2" and len(arguments) >= 3:
            value = Call(arguments[0], arguments[2] if isinstance(arguments[2], tuple) else ())
        else:
            return None
    return None


def _resolve(
    name: str, call: Call, entries: Mapping[str, _Entry], file_size: int
) -> tuple[TensorInfo, _View]:
    """A tensor's type, shape and place, checked against the storage it looks into."""
    arguments = call.arguments
    if len(arguments) < 4 or not isinstance(arguments[0], Persistent):
        raise _BadFileError(f"tensor {quote(name)} is not described in a way that torch does")
    storage, offset, shape, strides = arguments[:4]
    key, dtype = _storage_of(name, storage.reference)
    if len(arguments) > 6 and isinstance(arguments[6], Global):
        dtype = _DTYPES.get(arguments[6].name)
    if dtype is None:
        raise _BadFileError(f"tensor {quote(name)} is of a type that is not read here")
    if not (
        _are_sizes(shape) and _are_sizes(strides) and _are_sizes((offset,)) and len(shape) == len(strides)
    ):
        raise _BadFileError(f"tensor {quote(name)} has no valid shape")
    entry = entries.get(f"data/{key}")
    if entry is None:
        raise _BadFileError(f"has no data for tensor {quote(name)}; it is damaged or cut short")
    width = DTYPE_BITS[dtype] // 8
    size = math.prod(shape) * width
    reach = sum((count - 1) * stride for count, stride in zip(shape, strides, strict=True)) + 1
    # Steps of 0 could make a tensor larger than anything in the file.
    if size and ((offset + reach) * width > entry.size or size > file_size):
        raise _BadFileError(f"tensor {quote(name)} reaches over the end of its data")
    # Steps along dimensions of one element do not matter; torch leaves odd numbers there.
    plain = tuple(
        right if count == 1 else left
        for count, left, right in zip(shape, strides, _row_strides(shape), strict=True)
    )
    return TensorInfo(dtype, shape, 0, size), _View(entry.offset, offset, plain)


def _storage_of(name: str, reference: Any) -> tuple[str, str | None]:
    """Key and number type of a storage: ("storage", type, key, device, count)."""
    if (
        isinstance(reference, tuple)
        and len(reference) >= 5
        and reference[0] == "storage"
        and isinstance(reference[1], Global)
        and isinstance(reference[2], str)
    ):
        return reference[2], _STORAGES.get(reference[1].name.rpartition(".")[2])
    raise _BadFileError(f"tensor {quote(name)} refers to something that is not a storage")


def _row_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Steps of a tensor without gaps, in elements."""
    return tuple(math.prod(shape[index + 1 :]) for index in range(len(shape)))


def _are_sizes(value: Any) -> TypeGuard[tuple[int, ...]]:
    return (
        isinstance(value, tuple)
        and len(value) <= 64
        and all(type(size) is int and 0 <= size < 1 << 63 for size in value)
    )
