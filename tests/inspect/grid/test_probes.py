"""Every ready plan of lora-sample gives a page: its records, with stand-ins for the pictures, through lora-grid."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorapipe_engine.files.tensorfile import write_tensors
from support.commands import run

NAMES = ("mina-000001", "mina-000002", "mina")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("run")
    for name in NAMES:
        write_tensors(folder / f"{name}.safetensors", {"x": np.zeros(1, np.float32)}, {})
    return [folder / f"{name}.safetensors" for name in NAMES]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("probe", "axes", "labels"),
    [
        ("weight", ["file", "weight"], ["0.7", "0.9", "1.1", "1.3", "1.5"]),
        ("leak", ["file", "prompt", "seed"], ["base", *NAMES]),
        ("text-encoder", ["file", "prompt", "text encoder"], ["0", "0.5", "1"]),
        ("headroom", ["weight", "seed", "file"], ["0", "0.25", "2"]),
        ("merge", ["file", "seed"], ["base", "mina-000001 + mina-000002"]),
    ],
)
def test_a_probe_gives_a_page(
    probe: str, axes: list[str], labels: list[str], networks: list[Path], tmp_path: Path
) -> None:
    extra = ("--trigger", "mina") if probe == "leak" else ()
    words = ("--probe", probe, *networks, "--prompt", "mina, 1girl", *extra, "--size", "16x16")
    planned = run("lora-sample", *words, "-o", tmp_path / "cells", "--dry-run", "--json")
    (tmp_path / "cells").mkdir()
    for number, path in enumerate(
        dict.fromkeys(json.loads(row)["path"] for row in planned.stdout.splitlines())
    ):
        Image.new("RGB", (16, 16), (number % 256, 90, 40)).save(path)
    listed = tmp_path / "cells.jsonl"
    listed.write_text(planned.stdout)
    done = run("lora-grid", listed, "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    (text,) = re.findall(r'id="data">(.*)</script>', (tmp_path / "page.html").read_text(encoding="utf-8"))
    page = json.loads(text)
    assert [axis["title"] for axis in page["axes"]] == axes
    assert set(labels) <= {label for axis in page["axes"] for label in axis["labels"]}
