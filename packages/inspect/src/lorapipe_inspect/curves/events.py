"""TensorBoard's event files: records with check sums, each a protobuf message, of which the scalars are read.

A record is its length (8 bytes), a check sum of that, the message, and a check sum of the message: TFRecord of
tensorflow's documentation. The messages are read by the package tensorboard.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

from lorapipe_engine.errors import InputError, MissingExtra

MOST_BYTES = 256 << 20  # of a record; pictures are in them too
_FLOAT, _DOUBLE = 1, 2  # of tensorflow's DataType


def read_events(path: Path) -> tuple[list[tuple[int, str, float]], list[str]]:
    """(step, tag, value) of all scalars of a file, and what to say of it.

    Raises InputError for a file that is none or damaged, MissingExtra without tensorboard.
    """
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
    except ImportError as error:
        raise MissingExtra(
            f"{path}: TensorBoard's files need a package that is not installed: pip install tensorboard"
        ) from error
    rows: list[tuple[int, str, float]] = []
    notes: list[str] = []
    try:
        with path.open("rb") as file:
            number = 0
            while (message := _next(file, path, number, masked_crc32c)) is not None:
                if message is _CUT:
                    notes.append(f"record {number + 1} is cut short, as a killed run leaves it, and left out")
                    break
                rows += _scalars(Event, message, path, number)
                number += 1
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return rows, notes


_CUT = b"cut"


def _next(file: BinaryIO, path: Path, number: int, checksum: Any) -> bytes | None:
    """The next message; None at the end of the file, ``_CUT`` where the file ends inside it."""
    head = file.read(12)
    if not head:
        return None
    if len(head) < 12:
        return _CUT
    (length,) = struct.unpack("<Q", head[:8])
    if checksum(head[:8]) != struct.unpack("<I", head[8:])[0] or length > MOST_BYTES:
        what = "no TensorBoard file" if number == 0 else f"damaged in record {number + 1}"
        raise InputError(f"{path}: {what}")
    body = file.read(length + 4)
    if len(body) < length + 4:
        return _CUT
    if checksum(body[:-4]) != struct.unpack("<I", body[-4:])[0]:
        raise InputError(f"{path}: damaged in record {number + 1}")
    return body[:-4]


def _scalars(event: Any, message: bytes, path: Path, number: int) -> list[tuple[int, str, float]]:
    try:
        content = event.FromString(message)
    except Exception as error:  # protobuf's own classes differ with its versions
        raise InputError(f"{path}: damaged in record {number + 1}") from error
    rows = []
    for value in content.summary.value:
        number_ = _number(value)
        if number_ is not None:
            rows.append((int(content.step), str(value.tag), number_))
    return rows


def _number(value: Any) -> float | None:
    """The scalar of a summary: a plain one, or a tensor of one number as newer writers have it; None for others."""
    kind = value.WhichOneof("value")
    if kind == "simple_value":
        return float(value.simple_value)
    if kind != "tensor" or value.tensor.tensor_shape.dim:
        return None
    tensor = value.tensor
    if tensor.dtype == _FLOAT:
        content = (
            struct.unpack("<f", tensor.tensor_content)
            if len(tensor.tensor_content) == 4
            else tensor.float_val
        )
    elif tensor.dtype == _DOUBLE:
        content = (
            struct.unpack("<d", tensor.tensor_content)
            if len(tensor.tensor_content) == 8
            else tensor.double_val
        )
    else:
        return None
    return float(content[0]) if len(content) == 1 else math.nan
