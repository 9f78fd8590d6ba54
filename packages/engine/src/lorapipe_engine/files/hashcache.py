"""sha256 of large files, remembered by path, size and time of change, so that a checkpoint is read through only once.

The table lies in the cache folder and may be deleted at any time. A file that changed within the last seconds is not
remembered, since it could change again within the same tick of the clock.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from lorapipe_engine.errors import LoraError
from lorapipe_engine.files.cachefolder import cache_folder
from lorapipe_engine.files.hashes import sha256_file
from lorapipe_engine.files.writing.atomic import atomic_write

LARGE = 1 << 25  # bytes; smaller files are hashed in no time
_SETTLED = 2_000_000_000  # nanoseconds
_MOST = 500  # entries


def known_sha256(path: Path) -> str:
    """sha256 of a file in hexadecimal, from the table where the file has not changed since. Raises InputError."""
    try:
        facts = path.stat()
    except OSError:
        return sha256_file(path)  # says what is wrong
    if facts.st_size < LARGE:
        return sha256_file(path)
    name, stamp = str(path.resolve()), [facts.st_size, facts.st_mtime_ns]
    table_path = cache_folder() / "sha256.json"
    known = _read(table_path).get(name)
    if isinstance(known, list) and known[:2] == stamp and len(known) == 3:
        return str(known[2])
    digest = sha256_file(path)
    after = path.stat()
    if [after.st_size, after.st_mtime_ns] == stamp and time.time_ns() - facts.st_mtime_ns > _SETTLED:
        # Another process may have added to the table meanwhile; what gets lost is hashed again some day.
        table = {key: row for key, row in _read(table_path).items() if key != name}
        _write(table_path, {**dict(list(table.items())[-_MOST + 1 :]), name: [*stamp, digest]})
    return digest


def _read(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}


def _write(path: Path, table: dict[str, Any]) -> None:
    with suppress(OSError, LoraError):  # a cache that cannot be written is none
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, force=True) as file:
            file.write(json.dumps(table, indent=0).encode())
