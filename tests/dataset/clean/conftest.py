"""Running lora-clean."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lorapipe_dataset.clean.cli import lora_clean


@dataclass(frozen=True)
class Result:
    """What a run of the command left."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Clean = Callable[..., Result]


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Clean:
    """The command, in this process: ``clean("imgs", "--trigger", "x")``."""

    def run(*words: object, stdin: str = "") -> Result:
        stream = io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin.encode())))
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(SystemExit) as stop:
            lora_clean.main([str(word) for word in words])
        out, err = capfdbinary.readouterr()
        return Result(int(stop.value.code or 0), out.decode(), err.decode())

    return run


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
