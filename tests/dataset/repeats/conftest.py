"""Running the command, and small folders of pictures for it."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from lorapipe_dataset.repeats.cli import lora_repeats
from support.called import Result, caller

Repeats = Callable[..., Result[str]]
Draw = Callable[..., list[Path]]


@pytest.fixture
def repeats(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Repeats:
    """The command, in this process: ``repeats("pictures", "-o", "dataset")``."""
    return caller(lora_repeats, Result[str], monkeypatch, capfdbinary, text=True)


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """``draw("maid", 16)`` makes pictures with captions in a folder below tmp_path/pictures, no two of one colour."""

    def make(name: str, count: int, size: tuple[int, int] = (16, 16), caption: str = "a, b") -> list[Path]:
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for number in range(count):
            colour = (number % 256, number // 256, zlib.crc32(name.encode()) % 256)
            Image.new("RGB", size, colour).save(folder / f"{number:03}.png")
            (folder / f"{number:03}.txt").write_text(f"{caption}, {number}\n")
        return sorted(folder.glob("*.png"))

    return make
