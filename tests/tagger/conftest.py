"""Running the command."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorapipe_tagger.cli import lora_tag
from support.called import caller

from .making import MODEL, PICTURES, Result, Tag
from .serving import Server


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def tag(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Tag:
    """The command with the small model, in this process: ``tag("a.png", "--general", 0.5)``."""

    call = caller(lora_tag, Result, monkeypatch, capfdbinary, text=False)

    def run(*words: object, stdin: bytes = b"", model: object = MODEL) -> Result:
        given = [] if model is None else ["--model", model, "--device", "cpu"]
        return call(*words, *given, stdin=stdin)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with three pictures of the golden set."""
    place = tmp_path / "imgs"
    place.mkdir()
    for name in ("rgba.png", "exif.jpg", "gray16.png"):
        shutil.copy(PICTURES / name, place)
    return place


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server for sentences, and no key for it in the environment."""
    monkeypatch.delenv("LORA_TAG_CAPTION_KEY", raising=False)
    with Server() as one:
        thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield one
        one.shutdown()
