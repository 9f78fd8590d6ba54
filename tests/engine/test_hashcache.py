"""Remembered hashes are those of the files, also when these change."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from lorapipe_engine.errors import InputError
from lorapipe_engine.files import hashcache
from lorapipe_engine.files.hashcache import known_sha256

OLD = 1_600_000_000


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setattr(hashcache, "LARGE", 10)
    path = tmp_path / "model.bin"
    path.write_bytes(b"x" * 100)
    os.utime(path, (OLD, OLD))
    return path


def table(tmp_path: Path) -> Path | None:
    return next(iter(tmp_path.rglob("sha256.json")), None)


def test_a_file_is_hashed_once(file: Path, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"x" * 100).hexdigest()
    assert known_sha256(file) == digest
    remembered = table(tmp_path)
    assert remembered is not None
    remembered.write_text(remembered.read_text().replace(digest, "f" * 64))
    assert known_sha256(file) == "f" * 64


def test_a_changed_file_is_hashed_again(file: Path) -> None:
    known_sha256(file)
    file.write_bytes(b"y" * 100)
    assert known_sha256(file) == hashlib.sha256(b"y" * 100).hexdigest()
    os.utime(file, (OLD + 1, OLD + 1))
    assert known_sha256(file) == hashlib.sha256(b"y" * 100).hexdigest()


def test_a_file_just_written_is_not_remembered(file: Path, tmp_path: Path) -> None:
    os.utime(file)
    known_sha256(file)
    assert table(tmp_path) is None


def test_a_broken_table_is_no_hindrance(file: Path, tmp_path: Path) -> None:
    known_sha256(file)
    remembered = table(tmp_path)
    assert remembered is not None
    for text in ("", "[]", "{", '{"a": 1}'):
        remembered.write_text(text)
        assert known_sha256(file) == hashlib.sha256(b"x" * 100).hexdigest()


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        known_sha256(tmp_path / "nothing")
