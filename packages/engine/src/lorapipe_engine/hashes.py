"""Hashes by which the field knows files: A1111's old and new ones, and those in a LoRA's metadata."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

from lorapipe_engine.dtypes import Encoded
from lorapipe_engine.tensorfile import open_tensors, write_tensors

_BLOCK = 1 << 20
_WINDOW_START, _WINDOW_SIZE = 0x100000, 0x10000


def sha256_file(path: Path) -> str:
    """sha256 of a whole file (the hub's; A1111 shows the first 10 digits)."""
    return _sha256_from(path, 0)


def data_hash(path: Path) -> str:
    """sha256 of a safetensors file without its header (``sshs_model_hash``; the first 12 digits are AutoV3)."""
    with open_tensors(path) as file:
        start = file.header_bytes
    return _sha256_from(path, start)


def _sha256_from(path: Path, start: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def legacy_hash(path: Path) -> str:
    """A1111's old hash: the first 8 digits of the sha256 of 64 KiB at one MiB into the file."""
    with path.open("rb") as file:
        return _window_hash(file)


def _window_hash(file: io.BufferedIOBase) -> str:
    file.seek(_WINDOW_START)
    return hashlib.sha256(file.read(_WINDOW_SIZE)).hexdigest()[:8]


def network_hashes(tensors: Mapping[str, Encoded], metadata: Mapping[str, str]) -> tuple[str, str]:
    """``sshs_model_hash`` and ``sshs_legacy_hash`` of a network, in the form kohya's tools compute them.

    They hash the file as the reference library would write it (widest types first, then by name), the old one with the
    ``ss_`` metadata alone.
    """
    data = _serialise(tensors, None)
    length = int.from_bytes(data[:8], "little")
    model = hashlib.sha256(memoryview(data)[8 + length :]).hexdigest()
    own = {key: value for key, value in metadata.items() if key.startswith("ss_")}
    return model, _window_hash(io.BytesIO(_serialise(tensors, own)))


def _serialise(tensors: Mapping[str, Encoded], metadata: Mapping[str, str] | None) -> bytes:
    file = io.BytesIO()
    write_tensors(file, tensors, metadata)
    return file.getvalue()
