"""Copies of safetensors files with other metadata: a new header, the data part byte for byte."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO, Self

from lorapipe_engine.command.records import STREAM, Record, write_record
from lorapipe_engine.command.text import printable
from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import ConfigError, InputError
from lorapipe_engine.files.bytesource import CHUNK
from lorapipe_engine.files.hashes import WINDOW_SIZE, WINDOW_START
from lorapipe_engine.files.tensorfile import MAX_HEADER, TensorFile, build_header, check_weights_output
from lorapipe_engine.files.writing.atomic import atomic_write
from lorapipe_engine.files.writing.openfolder import is_link_path
from lorapipe_inspect.inputs import Input, find_inputs, work_through

LEGACY_HASH = "sshs_legacy_hash"


@dataclass(frozen=True)
class Changes:
    """What to change: entries to set, patterns of entries to leave out, or all of them."""

    new: Mapping[str, str]
    without: tuple[str, ...]
    strip: bool

    @classmethod
    def parse(cls, setting: Sequence[str], unset: Sequence[str], *, strip: bool) -> Self:
        """From words ``KEY=VALUE`` and keys. Raises ConfigError for words that are none."""
        new = {}
        for word in setting:
            key, equals, value = word.partition("=")
            if not equals or not key:
                raise ConfigError(f"--set {word}: write KEY=VALUE")
            if not _is_text(word):
                raise ConfigError(f"--set {key}: is not UTF-8 text")
            new[key] = value
        return cls(new, tuple(unset), strip)

    def apply(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """The metadata changed. Entries to set win over those to leave out."""
        kept = {} if self.strip else {key: text for key, text in metadata.items() if not self._drops(key)}
        return {**kept, **self.new}

    def _drops(self, key: str) -> bool:
        return any(key == pattern or fnmatchcase(key, pattern) for pattern in self.without)


def change_files(
    words: Sequence[str],
    changes: Changes,
    output: str | None,
    *,
    force: bool,
    recursive: bool = False,
    dry_run: bool = False,
) -> int:
    """Write every file that ``words`` name with changed metadata, with ``dry_run`` only tell of it; the exit status.

    ``output`` as on the command line; None changes the files themselves, which takes ``force``. Raises ConfigError
    where outputs are missing or would be the same.
    """
    if output is None and not force and not dry_run:
        raise ConfigError(
            "no output: give -o OUT, or --force to change the file itself, or -n to write nothing"
        )
    inputs = list(find_inputs(words, recursive=recursive))
    if dry_run:
        return work_through(inputs, lambda one: _tell_changes(one, changes))
    if output == STREAM:
        if len(inputs) != 1:
            raise ConfigError(f"-o - takes one file, not {len(inputs)}: give -o FOLDER/")
        if sys.stdout.isatty():
            raise ConfigError("-o - would write binary data to the terminal: pipe it, or give -o FILE")
        return work_through(inputs, lambda one: _copy_to_stream(one, changes))
    targets = _targets(inputs, words, output)

    def work(one: Input) -> None:
        target = targets[id(one)]
        _copy_to_file(one, target, changes, force=force)
        write_record(Record(target), jsonl=False)

    return work_through(inputs, work)


def _targets(inputs: Sequence[Input], words: Sequence[str], output: str | None) -> dict[int, Path]:
    folder = len(inputs) > 1 or any(Path(word).is_dir() for word in words)
    folder = folder or (output or "").endswith(("/", "\\")) or (output is not None and Path(output).is_dir())
    targets: dict[int, Path] = {}
    for one in inputs:
        if output is None:
            if one.path is None:
                raise ConfigError("standard input has no file to change: give -o OUT")
            if is_link_path(one.path):
                # It may lead out of a folder that somebody else made, or into the hub's cache.
                raise ConfigError(
                    f"{one.path}: is a link; name the file that it leads to, {one.path.resolve()}, or give -o OUT"
                )
            target = one.path
        else:
            name = one.path.name if one.path else "stdin.safetensors"
            target = Path(output) / one.inner / name if folder else Path(output)
        if target in targets.values():
            raise ConfigError(f"two of the files would both become {target}")
        targets[id(one)] = target
    if folder and output is not None:
        for target in targets.values():
            target.parent.mkdir(parents=True, exist_ok=True)
    return targets


# -------------------------------------------------------------------------------- one file


def _copy_to_file(one: Input, target: Path, changes: Changes, *, force: bool) -> None:
    check_weights_output(target, force=force)
    file = _open(one)
    try:
        header = _new_header(file, changes)
        with atomic_write(target, force=force, size=len(header) + file.data_bytes) as output:
            _copy(file, header, output)
            # Windows lets no file be replaced while it is open.
            file.close()
    finally:
        file.close()


def _tell_changes(one: Input, changes: Changes) -> None:
    with _open(one) as file:
        _new_header(file, changes)


def _copy_to_stream(one: Input, changes: Changes) -> None:
    with _open(one) as file:
        _copy(file, _new_header(file, changes), sys.stdout.buffer)
    sys.stdout.buffer.flush()


def _open(one: Input) -> TensorFile:
    file = one.open()
    if not isinstance(file, TensorFile):
        file.close()
        raise InputError(
            f"{one.name}: is a pickle, which has no metadata to change; save it as safetensors first"
        )
    return file


def _copy(file: TensorFile, header: bytes, output: BinaryIO) -> None:
    output.write(header)
    for start in range(0, file.data_bytes, CHUNK):
        output.write(file.data(start, min(file.data_bytes, start + CHUNK)))


def _new_header(file: TensorFile, changes: Changes) -> bytes:
    """The header with its length in front; tensors stay where they are. Raises ConfigError if it gets too long."""
    metadata = changes.apply(file.metadata)
    if LEGACY_HASH in metadata and LEGACY_HASH not in changes.new:
        metadata[LEGACY_HASH] = _legacy_hash(file, metadata)
    added = sum(file.metadata.get(key) != text for key, text in metadata.items())
    dropped = len(file.metadata.keys() - metadata.keys())
    say(f"{printable(str(file.path))}: entries set: {added}, left out: {dropped}; data part unchanged")
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    for name, info in file.tensors.items():
        header[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [info.start, info.end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ConfigError(
            f"{file.path}: the metadata would take {len(text):,} bytes, more than a file may have"
        )
    return len(text).to_bytes(8, "little") + text


def _legacy_hash(file: TensorFile, metadata: Mapping[str, str]) -> str:
    """``sshs_legacy_hash`` as kohya's trainer computes it (see :func:`lorapipe_engine.files.hashes.network_hashes`): of
    64 KiB at one MiB of the file with its ``ss_`` entries only, of which no other byte is read.
    """
    kinds = {name: (info.dtype, info.shape) for name, info in file.tensors.items()}
    header, places = build_header(
        kinds, {key: text for key, text in metadata.items() if key.startswith("ss_")}
    )
    window = hashlib.sha256(header[WINDOW_START : WINDOW_START + WINDOW_SIZE])
    for name, place in places.items():
        first = max(0, WINDOW_START - len(header) - place.start)
        last = min(place.size, WINDOW_START + WINDOW_SIZE - len(header) - place.start)
        if first < last:
            window.update(file.raw(name, first, last))
    return window.hexdigest()[:8]


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
