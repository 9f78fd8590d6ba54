"""Running lora-clean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lorapipe_dataset.clean.cli import lora_clean
from support.called import Result, caller

Clean = Callable[..., Result[str]]


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Clean:
    """The command, in this process: ``clean("imgs", "--trigger", "x")``."""
    return caller(lora_clean, Result[str], monkeypatch, capfdbinary, text=True)


@pytest.fixture
def imgs(tmp_path: Path) -> Path:
    """A folder of pictures (their bytes do not matter) with captions of all kinds."""
    folder = tmp_path / "imgs"
    folder.mkdir()
    captions = {
        "a": b"1girl, solo, white_shirt, shirt,, Solo , ^_^\n",
        "b": b"\xef\xbb\xbf2girls, blue hair, red hair, smile\r\n",
        "c": "café, cafe\u0301, naïve".encode(),
    }
    for name, data in captions.items():
        (folder / f"{name}.png").write_bytes(b"png")
        (folder / f"{name}.txt").write_bytes(data)
    return folder
