"""``lora-repeats --move`` killed while files leave their old places."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

COUNT = 1500
PROGRAM = [sys.executable, "-c", "from lorapipe_dataset.repeats.cli import main; main()"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no such signal there")
@pytest.mark.parametrize("seed", range(int(os.environ.get("LORAPIPE_KILLS", "3"))))
def test_nothing_is_lost_and_all_comes_back(tmp_path: Path, seed: int) -> None:
    concept, output = tmp_path / "in/mira", tmp_path / "out"
    concept.mkdir(parents=True)
    drawn = io.BytesIO()
    Image.new("RGB", (8, 8)).save(drawn, "PNG")
    for number in range(COUNT):
        (concept / f"{number}.png").write_bytes(drawn.getvalue() + b"%d" % number)
        (concept / f"{number}.txt").write_bytes(b"\xef\xbb\xbfmira, %d\r\n" % number)
    before = contents(concept)
    process = subprocess.Popen(
        [*PROGRAM, "-q", str(tmp_path / "in"), "-o", str(output), "--move"], stdout=subprocess.DEVNULL
    )
    # At least one file has left.
    while sum(1 for _ in concept.iterdir()) >= 2 * COUNT + (concept / ".lorapipe").exists():
        assert process.poll() is None
        time.sleep(0.001)
    time.sleep(random.Random(seed).uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = contents(concept)
    print(f"seed {seed}: {2 * COUNT - len(there)} of {2 * COUNT} files have left")
    (tree,) = output.iterdir()
    assert contents(tree) == before  # the tree was whole before the first left
    assert all(before[name] == data for name, data in there.items())
    subprocess.run([*PROGRAM, "-q", "--undo", str(tmp_path / "in")], check=True)
    assert contents(concept) == before
