"""What models have said about pictures before, so that other thresholds, orders or words cost no second look.

One SQLite file in the user's cache folder. A picture is known by the SHA-256 of its file, and what a model said by the
SHA-256 of the network and the way of preparing pictures. Scores are kept as they are (float32), except those
below 0.01, which count as nothing everywhere: a cached answer is the fresh one.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lorapipe_engine.command.tool import say
from lorapipe_engine.errors import InputError
from lorapipe_engine.files.hashes import sha256_file
from lorapipe_tagger.scoring.select import FLOOR
from lorapipe_tagger.scoring.session import Scores

_TABLES = """
CREATE TABLE IF NOT EXISTS files (place BLOB PRIMARY KEY, state TEXT NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS scores (
    model TEXT NOT NULL, picture BLOB NOT NULL, width INTEGER, height INTEGER, transparent INTEGER,
    length INTEGER NOT NULL, labels BLOB NOT NULL, chances BLOB NOT NULL, PRIMARY KEY (model, picture)
) WITHOUT ROWID;
"""
_VERSION = 1
_FLUSH_AT = 64
# A file changed within the clock's coarseness of being looked at may change again without showing it.
_SETTLED_SECONDS = 2.0


class Known(NamedTuple):
    """What the cache has of a picture: upright size, transparency, scores (L,)."""

    size: tuple[int, int]
    transparent: bool
    scores: Scores


class ScoreCache:
    """Scores by picture and model. Its methods may be called by several threads, its file used by several
    programs at once. A cache that cannot be opened or written is told of once and does without.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._files: dict[bytes, tuple[str, bytes]] = {}
        self._scores: list[tuple[object, ...]] = []
        self._base: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")
            self._base.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def digest(self, path: Path) -> bytes:
        """SHA-256 of a file, remembered for as long as the file's time and size stay. Raises InputError."""
        try:
            state = path.stat()
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        place = hashlib.blake2b(os.fsencode(path.absolute()), digest_size=16).digest()
        stamp = f"{_VERSION} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}"
        row = self._files.get(place) or self._one("SELECT state, digest FROM files WHERE place = ?", place)
        if row and row[0] == stamp:
            return bytes(row[1])
        digest = bytes.fromhex(sha256_file(path))
        if time.time() - max(state.st_mtime, state.st_ctime) > _SETTLED_SECONDS:
            with self._lock:
                self._files[place] = (stamp, digest)
        return digest

    def get(self, model: str, picture: bytes) -> Known | None:
        """What a model said about a picture, or None."""
        row = self._one(
            "SELECT width, height, transparent, length, labels, chances FROM scores "
            "WHERE model = ? AND picture = ?",
            model,
            picture,
        )
        if row is None:
            return None
        width, height, transparent, length, labels, chances = row
        scores = np.zeros(length, dtype=np.float32)
        scores[np.frombuffer(labels, dtype="<u4")] = np.frombuffer(chances, dtype="<f4")
        return Known((width, height), bool(transparent), scores)

    def put(self, model: str, picture: bytes, known: Known) -> None:
        """Keep what a model said; it is written with the next of :meth:`flush`."""
        rows = np.flatnonzero(known.scores >= FLOOR)
        chances = known.scores[rows].astype("<f4").tobytes()
        values = (model, picture, *known.size, known.transparent, len(known.scores))
        with self._lock:
            self._scores.append((*values, rows.astype("<u4").tobytes(), chances))
            full = len(self._scores) >= _FLUSH_AT
        if full:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting, in one short transaction."""
        with self._lock:
            files, self._files = self._files, {}
            scores, self._scores = self._scores, []
            if self._base is None or not (files or scores):
                return
            try:
                self._base.execute("BEGIN IMMEDIATE")
                self._base.executemany(
                    "INSERT OR REPLACE INTO files VALUES (?, ?, ?)",
                    [(place, *row) for place, row in files.items()],
                )
                self._base.executemany(
                    "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?, ?)", scores
                )
                self._base.execute("COMMIT")
            except sqlite3.Error as error:
                self._give_up(error)

    def close(self) -> None:
        """Write what is waiting and let go of the file."""
        self.flush()
        with self._lock:
            if self._base is not None:
                self._base.close()
                self._base = None

    def _one(self, query: str, *values: object) -> tuple[Any, ...] | None:
        with self._lock:
            if self._base is None:
                return None
            try:
                with closing(self._base.execute(query, values)) as cursor:
                    row: tuple[Any, ...] | None = cursor.fetchone()
                    return row
            except sqlite3.Error as error:
                self._give_up(error)
                return None

    def _give_up(self, error: Exception) -> None:
        say(f"lora-tag: warning: goes on without the cache {self.path}: {error}; delete it if it is broken")
        if self._base is not None:
            self._base.close()
        self._base = None


def cache_folder() -> Path:
    """Where this user's caches are: ``$XDG_CACHE_HOME``, or the system's usual folder, and ``lorapipe`` in it."""
    given = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    if given:
        return Path(given) / "lorapipe"
    home = Path("~/Library/Caches" if sys.platform == "darwin" else "~/.cache").expanduser()
    return home / "lorapipe"
