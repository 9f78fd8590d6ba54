"""Running the command."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import pytest

from lorapipe_tagger.cli import lora_tag

from .making import MODEL, PICTURES, Result, Tag


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def tag(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Tag:
    """The command with the small model, in this process: ``tag("a.png", "--general", 0.5)``."""

    def run(*words: object, stdin: bytes = b"", model: object = MODEL) -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin))))
        given = [] if model is None else ["--model", str(model), "--device", "cpu"]
        with pytest.raises(SystemExit) as stop:
            lora_tag.main([*map(str, words), *given])
        out, err = capfdbinary.readouterr()
        return Result(int(stop.value.code or 0), out, err.decode())

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three pictures of the golden set."""
    place = tmp_path / "imgs"
    place.mkdir()
    for name in ("rgba.png", "exif.jpg", "gray16.png"):
        shutil.copy(PICTURES / name, place)
    return place
