"""Running the command, and small datasets for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorapipe_dataset.check.cli import lora_check
from support import called
from support.called import caller


class Result(called.Result[str]):
    """What a run of the command left, and its report."""

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found

    def found(self, rule: str) -> list[dict[str, Any]]:
        """The report's findings of a rule."""
        return [finding for finding in self.json["findings"] if finding["rule"] == rule]


Check = Callable[..., Result]
Draw = Callable[..., Path]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Check:
    """The command, in this process: ``check("dataset", "--json")``."""
    return caller(lora_check, Result, monkeypatch, capfdbinary, text=True)


def scene(seed: int, size: tuple[int, int] = (96, 96)) -> Image.Image:
    """A picture of its own: soft colours with sharp grains on it."""
    rng = np.random.default_rng(seed)
    soft = Image.fromarray(rng.integers(0, 255, (5, 5, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    grains = rng.integers(0, 2, (size[1], size[0], 1)) * 40
    return Image.fromarray((np.asarray(soft) * 0.8 + grains).astype(np.uint8))


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """``draw("set/5_mayu/a.jpg", "mayu, hat", seed=1)`` makes a picture of its own with a caption."""
    count = 0

    def make(
        name: str, caption: str | None = "hat, tree, night", *, size: tuple[int, int] = (96, 96)
    ) -> Path:
        nonlocal count
        count += 1
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        scene(count, size).save(path)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
        return path

    return make
