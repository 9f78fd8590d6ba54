"""Running the command, and small folders of pictures for it."""

from __future__ import annotations

import io
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from lorapipe_dataset.repeats.cli import lora_repeats


@dataclass(frozen=True)
class Result:
    """What a run of the command left."""

    code: int
    out: str
    err: str


Repeats = Callable[..., Result]
Draw = Callable[..., list[Path]]


@pytest.fixture
def repeats(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Repeats:
    """The command, in this process: ``repeats("pictures", "-o", "dataset")``."""

    def run(*words: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin))))
        with pytest.raises(SystemExit) as stop:
            lora_repeats.main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Result(int(stop.value.code or 0), out, err)

    return run


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
