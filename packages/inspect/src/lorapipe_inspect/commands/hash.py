"""``lora-inspect hash``: the hashes by which programs and sites know a file."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import click

from lorapipe_engine.command.tool import show, tool_command
from lorapipe_inspect.arguments import file_arguments

if TYPE_CHECKING:
    from lorapipe_inspect.inputs import Input

EXAMPLES = """
lora-inspect hash mina.safetensors
lora-inspect hash run/ --json
"""
# Metadata, and in hex: of the whole file, of the data part, A1111's first.
_Found = tuple[dict[str, str], str, str | None, str]
_LABELS = {
    "sha256": "SHA-256",
    "autov2": "AutoV2",
    "data_sha256": "data SHA-256",
    "autov3": "AutoV3",
    "legacy": "legacy",
}


@tool_command("lora-inspect hash", examples=EXAMPLES)
@file_arguments
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per file.")
def command(inputs: tuple[str, ...], recursive: bool, as_json: bool) -> int:
    """Print the hashes of weight files.

    AutoV2 is the start of the whole file's SHA-256, AutoV3 of that of its data part, which stays the same when
    metadata change; "legacy" is the first web UI's, of 64 KiB at one MiB. FILE are files, folders, or - for standard
    input (a weight file, or a list of paths).
    """
    from lorapipe_inspect.inputs import each_input

    def work(one: Input) -> None:
        record = hash_record(one)
        if as_json:
            click.echo(json.dumps(record))
            return
        show(one.name)
        for name, label in _LABELS.items():
            show(f"  {label:<13} {record[name] or '- (not a safetensors file)'}")
        if record["stored"] is not None:
            state = "agrees with" if record["stored"] == record["data_sha256"] else "DIFFERS from"
            show(f"  {'metadata':<13} sshs_model_hash {state} the data")

    return each_input(inputs, work, recursive=recursive)


def hash_record(one: Input) -> dict[str, Any]:
    """All hashes of a file in hex. "data_sha256" and "autov3" are None for pickles; "stored" is what the metadata
    have for the data's (``sshs_model_hash``). Raises InputError for what is no weight file.
    """
    if one.stream is not None:
        metadata, whole, data, legacy = _stream_hashes(one.stream)
    else:
        metadata, whole, data, legacy = _file_hashes(one)
    return {
        "path": one.name,
        "file": one.name,
        "sha256": whole,
        "autov2": whole[:10],
        "data_sha256": data,
        "autov3": data[:12] if data else None,
        "legacy": legacy,
        "stored": metadata.get("sshs_model_hash"),
    }


def _file_hashes(one: Input) -> _Found:
    from lorapipe_engine.errors import InputError
    from lorapipe_engine.files import hashes
    from lorapipe_engine.files.tensorfile import TensorFile

    with one.open() as file:
        metadata, is_tensors = file.metadata, isinstance(file, TensorFile)
    if one.path is None or not one.path.is_file():
        raise InputError(f"{one.name}: is no regular file; pipe it in: lora-inspect hash - < FILE")
    data = hashes.data_hash(one.path) if is_tensors else None
    return metadata, hashes.sha256_file(one.path), data, hashes.legacy_hash(one.path)


def _stream_hashes(stream: BinaryIO) -> _Found:
    from lorapipe_engine.files.hashes import WINDOW_SIZE, WINDOW_START
    from lorapipe_engine.files.tensorfile import open_tensors

    copy = _Copying(stream)
    # Reads no further than the header allows, whatever comes.
    with open_tensors(cast("BinaryIO", copy)) as file:
        metadata, start = file.metadata, 8 + file.header_bytes
    content = memoryview(copy.content)
    parts = (content, content[start:], content[WINDOW_START : WINDOW_START + WINDOW_SIZE])
    whole, data, legacy = (hashlib.sha256(part).hexdigest() for part in parts)
    return metadata, whole, data, legacy[:8]


class _Copying:
    """A stream that keeps what is read from it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.name = stream.name
        self.content = bytearray()
        self._stream = stream

    def read(self, count: int) -> bytes:
        piece = self._stream.read(count)
        self.content += piece
        return piece
