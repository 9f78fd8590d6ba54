"""Hashes by which the field knows files: A1111's old and new ones, and those in a LoRA's metadata."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from lorapipe_engine.errors import InputError
from lorapipe_engine.files.bytesource import CHUNK, Source, open_source, reason
from lorapipe_engine.files.dtypes import Array, Encoded
from lorapipe_engine.files.tensorfile import lay_out, open_tensors

# The part of a file that A1111's first model hash looked at, in bytes.
WINDOW_START, WINDOW_SIZE = 0x100000, 0x10000


class NetworkHashes(NamedTuple):
    """``sshs_model_hash`` and ``sshs_legacy_hash``."""

    model: str
    legacy: str


def sha256_file(path: Path) -> str:
    """sha256 of a whole file; its first 10 digits are A1111's AutoV2. Raises InputError."""
    return _sha256(path, 0)


def data_hash(path: Path) -> str:
    """sha256 of what follows a safetensors file's header: ``sshs_model_hash``, AutoV3 in the first 12 digits.

    Raises InputError for other files.
    """
    with open_tensors(path) as file:
        start = 8 + file.header_bytes
    return _sha256(path, start)


def legacy_hash(path: Path) -> str:
    """A1111's old model hash: the first 8 digits of the sha256 of 64 KiB at one MiB into the file.

    Shorter files all have "e3b0c442", the hash of nothing. Raises InputError.
    """
    return _sha256(path, WINDOW_START, WINDOW_SIZE)[:8]


def network_hashes(
    tensors: Mapping[str, Array | Encoded], metadata: Mapping[str, str] | None = None
) -> NetworkHashes:
    """The two hashes that a network's metadata carries, as kohya's trainer computes them.

    They are taken from the file that the reference library would write, with no metadata but the ``ss_``
    keys: the first from all data, the second from A1111's old window. Raises OutputError for tensors that no
    file holds.
    """
    own = {key: value for key, value in (metadata or {}).items() if key.startswith("ss_")}
    header, blocks = lay_out(tensors, own)
    data, window = hashlib.sha256(), hashlib.sha256()
    place = len(header)
    window.update(header[WINDOW_START : WINDOW_START + WINDOW_SIZE])
    for block in blocks:
        data.update(block)
        first, last = WINDOW_START - place, WINDOW_START + WINDOW_SIZE - place
        window.update(block[max(0, first) : max(0, last)])
        place += len(block)
    return NetworkHashes(data.hexdigest(), window.hexdigest()[:8])


def _sha256(path: Path, start: int, count: int | None = None) -> str:
    source = open_source(path)
    try:
        return _digest(source, start, source.size if count is None else min(source.size, start + count))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    finally:
        source.close()


def _digest(source: Source, start: int, stop: int) -> str:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(CHUNK))
    for place in range(start, stop, CHUNK):
        piece = buffer[: min(CHUNK, stop - place)]
        source.read_into(piece, place)
        digest.update(piece)
    return digest.hexdigest()
