"""Sentences that came before, so that the same question to the same server is not asked again."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

from lorapipe_engine.command.tool import say

_TABLE = (
    "CREATE TABLE IF NOT EXISTS sentences (question BLOB PRIMARY KEY, sentence TEXT NOT NULL) WITHOUT ROWID"
)


class KnownSentences:
    """Sentences by the SHA-256 of their question, in one SQLite file that several threads and programs may use.

    Each is on the disk when :meth:`put` returns. A file that cannot be used is told of once and done without.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._base: sqlite3.Connection | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(path, timeout=30, check_same_thread=False, isolation_level=None)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def get(self, question: bytes) -> str | None:
        """The sentence that came to a question, or None."""
        row = self._run("SELECT sentence FROM sentences WHERE question = ?", question)
        return None if row is None else str(row[0])

    def put(self, question: bytes, sentence: str) -> None:
        """Keep a sentence."""
        self._run("INSERT OR REPLACE INTO sentences VALUES (?, ?)", question, sentence)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._base is not None:
                self._base.close()
            self._base = None

    def _run(self, command: str, *values: object) -> tuple[object, ...] | None:
        with self._lock:
            if self._base is None:
                return None
            try:
                row: tuple[object, ...] | None = self._base.execute(command, values).fetchone()
            except sqlite3.Error as error:
                self._give_up(error)
                return None
            return row

    def _give_up(self, error: Exception) -> None:
        self._base = None
        say(f"lora-tag: note: {self._path}: sentences are not kept for later runs ({error})")
