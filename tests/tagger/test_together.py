"""lora-tag and lora-clean at work on one folder, as processes of their own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .making import MODEL, save_picture

pytest.importorskip("lorapipe_dataset")

COUNT, CLEANERS = 150, 6
CLEAN = "from lorapipe_dataset.clean.cli import main; main()"


@pytest.mark.slow
def test_nothing_is_lost(tmp_path: Path) -> None:
    """Each caption ends with its own words, those of every cleaning run and the tagger's tags."""
    place = tmp_path / "imgs"
    place.mkdir()
    save_picture(place / "000.png")
    for index in range(COUNT):
        if index:
            shutil.copy(place / "000.png", place / f"{index:03d}.png")
        (place / f"{index:03d}.txt").write_text(f"own words {index}\n")
    tagger = [sys.executable, "-m", "lorapipe_tagger", str(place), "--model", str(MODEL), "--device", "cpu"]
    said = tmp_path / "said"
    with said.open("w") as talk_file:
        tagging = subprocess.Popen(
            [*tagger, "--existing", "append"], stdout=subprocess.PIPE, stderr=talk_file, text=True
        )
    assert tagging.stdout is not None
    out = tagging.stdout.readline()  # from here on captions are written
    cleaning = [
        subprocess.Popen(
            [sys.executable, "-c", CLEAN, str(place), "--append", f"word {index}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(CLEANERS)
    ]
    out += tagging.stdout.read()  # not communicate(), which loses what readline() has taken in advance
    assert tagging.wait(timeout=120) == 0, said.read_text()
    assert len(out.splitlines()) == COUNT
    for process in cleaning:
        _, talk = process.communicate(timeout=120)
        assert process.returncode == 0, talk

    alone = tmp_path / "alone"
    alone.mkdir()
    save_picture(alone / "a.png")
    subprocess.run([*tagger[:3], str(alone), *tagger[4:]], capture_output=True, check=True)
    tags = (alone / "a.txt").read_text().strip().split(", ")
    for index in range(COUNT):
        found = (place / f"{index:03d}.txt").read_text().strip().split(", ")
        wanted = [f"own words {index}", *(f"word {one}" for one in range(CLEANERS)), *tags]
        assert sorted(found) == sorted(wanted), index
    assert not list(place.glob("*.tmp"))
