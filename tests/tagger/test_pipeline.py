"""Streams of pictures: the cache, order, interrupts, memory."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorapipe_engine.pictures.opening import PixelGate
from lorapipe_tagger.scoring.picture import Preparation, prepare, read_picture
from lorapipe_tagger.scoring.scores import Known, ScoreCache

from .making import MODEL, PICTURES, Tag, save_picture


def test_the_second_run_asks_no_model(tag: Tag, folder: Path) -> None:
    first = tag(folder, "--no-txt")
    second = tag(folder, "--no-txt")
    assert "model on cpu" in first.err
    assert "model on cpu" not in second.err
    assert [record["cached"] for record in second.records] == [True] * 3
    for old, new in zip(first.records, second.records, strict=True):
        assert {**old, "cached": True} == new
    assert tag(folder, "--no-txt", "--no-cache").records[0]["cached"] is False


def test_the_cache_knows_a_picture_by_its_content(tag: Tag, folder: Path) -> None:
    tag(folder, "--no-txt")
    (folder / "exif.jpg").rename(folder / "renamed.jpg")
    shutil.copy(PICTURES / "la.png", folder / "rgba.png")
    cached = {Path(record["path"]).name: record["cached"] for record in tag(folder, "--no-txt").records}
    assert cached == {"gray16.png": True, "renamed.jpg": True, "rgba.png": False}


def test_the_cache_gives_back_what_it_got(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = (rng.random(1000) ** 4).astype(np.float32)
    scores[scores < 0.01] = 0
    for _ in range(2):
        cache = ScoreCache(tmp_path / "cache" / "scores.sqlite")
        cache.put("model", b"picture", Known((3, 4), True, scores))
        cache.close()
        cache = ScoreCache(tmp_path / "cache" / "scores.sqlite")
        known = cache.get("model", b"picture")
        assert known is not None
        assert (known.size, known.transparent) == ((3, 4), True)
        np.testing.assert_array_equal(known.scores, scores)
        assert cache.get("model", b"other") is None
        assert cache.get("other", b"picture") is None
        cache.close()


def test_a_changed_file_is_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    os.utime(path, (1, 1))
    cache = ScoreCache(tmp_path / "scores.sqlite")
    first = cache.digest(path)
    cache.flush()
    assert cache.digest(path) == first
    path.write_bytes(b"two")
    assert cache.digest(path) != first
    cache.close()


@pytest.mark.slow
def test_order_is_kept_whatever_the_batch(tag: Tag, tmp_path: Path) -> None:
    for index in range(23):
        size = (1500, 1200) if index % 5 == 0 else (20, 30)
        save_picture(tmp_path / f"{index:02d}.png", size, (index * 9, 40, 250 - index * 9))
    (tmp_path / "11.png").write_bytes(b"broken")
    one = tag(tmp_path, "--no-txt", "--no-cache", "--batch", 1, "--workers", 1)
    assert [int(Path(record["path"]).stem) for record in one.records] == list(range(23))
    assert "error" in one.records[11]
    for batch, workers in ((4, 3), (23, 2), (64, 8)):
        many = tag(tmp_path, "--no-txt", "--no-cache", "--batch", batch, "--workers", workers)
        assert [record.get("caption") for record in many.records] == [r.get("caption") for r in one.records]
    fixed = tag(tmp_path, "--no-txt", "--no-cache", "--batch", 8, model=MODEL.with_name("model_batch1"))
    assert [record.get("caption") for record in fixed.records] == [r.get("caption") for r in one.records]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    place = tmp_path / "imgs"
    place.mkdir()
    save_picture(place / "000.png", (1400, 1400))
    for index in range(1, 120):
        shutil.copy(place / "000.png", place / f"{index:03d}.png")
    command = [sys.executable, "-m", "lorapipe_tagger", str(place), "--model", str(MODEL), "--no-cache"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate(timeout=30)
    assert process.returncode == 130, talk
    assert talk.splitlines()[-1] == "lora-tag: interrupted"
    done = sorted(place.glob("*.txt"))
    assert 1 <= len(done) < 120
    assert all(path.read_text() == first["caption"] + "\n" for path in done)
    assert [path.suffix for path in (place / ".lorapipe").iterdir()] == [".jsonl"]
    times = {path: path.stat().st_mtime_ns for path in done}
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(result.stdout.splitlines()) == 120
    assert f"{120 - len(done)} tagged, {len(done)} had captions already" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == times


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_kill_leaves_captions_old_or_new(tmp_path: Path) -> None:
    place = tmp_path / "imgs"
    place.mkdir()
    save_picture(place / "00.png")
    for index in range(60):
        if index:
            shutil.copy(place / "00.png", place / f"{index:02d}.png")
        (place / f"{index:02d}.txt").write_text("old words\n")
    command = [
        sys.executable,
        "-m",
        "lorapipe_tagger",
        str(place),
        "--model",
        str(MODEL),
        "--existing",
        "replace",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.005)
    process.kill()
    process.communicate()
    texts = {path.read_text() for path in place.glob("*.txt")}
    assert len(list(place.glob("*.txt"))) == 60
    assert len(texts - {"old words\n"}) <= 1
    assert all(text.endswith("\n") for text in texts)


@pytest.mark.slow
def test_large_jpegs_are_decoded_small(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
    small.resize((5400, 3600), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    found = read_picture(tmp_path / "a.jpg", [Preparation()])
    assert found.size == (5400, 3600)
    whole = Image.open(tmp_path / "a.jpg").convert("RGB")
    difference = np.abs(found.pixels[0].astype(int) - prepare(whole, Preparation()).astype(int))
    assert difference.mean() < 0.6


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900), st.integers(0, 2**32 - 1))
def test_squaring_is_padding_and_scaling(width: int, height: int, seed: int) -> None:
    """The same as the plain way, but for a level or two here and there where sums lie between two."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    square = max(width, height)
    canvas = Image.new("RGB", (square, square), "white")
    canvas.paste(image, ((square - width) // 2, (square - height) // 2))
    plain = np.asarray(canvas.resize((448, 448), Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(prepare(image, Preparation(channels="RGB")).astype(int) - plain)
    assert difference.max() <= 2
    assert difference.mean() < 0.01


def test_the_gate_lets_large_pictures_in_alone() -> None:
    gate = PixelGate(100)
    with gate.room(60), gate.room(40):
        pass
    with gate.room(1_000_000):
        pass
    with gate.room(100):
        pass


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("seed", range(int(os.environ.get("LORAPIPE_KILLS", "3"))))
def test_a_killed_run_leaves_whole_captions_and_can_be_taken_back(tmp_path: Path, seed: int) -> None:
    """Killed at random moments after the first caption is changed."""
    place = tmp_path / "imgs"
    place.mkdir()
    for index in range(60):
        save_picture(place / f"{index:03d}.png", colour=(index, 90, 20))
        (place / f"{index:03d}.txt").write_bytes(b"\xef\xbb\xbfmine\r\n")
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    command = [sys.executable, "-m", "lorapipe_tagger", str(place), "--model", str(MODEL), "--no-cache"]
    process = subprocess.Popen(
        [*command, "--existing", "replace"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    record = json.loads(process.stdout.readline())
    time.sleep(random.Random(seed).uniform(0, 0.4))
    process.kill()
    rest, _ = process.communicate(timeout=30)
    told = [record, *(json.loads(line) for line in rest.splitlines(keepends=True) if line.endswith("\n"))]
    new = {Path(row["path"]).stem: row["caption"] + "\n" for row in told}
    texts = {path.stem: path.read_bytes() for path in place.glob("*.txt")}
    changed = {stem for stem, text in texts.items() if text != b"\xef\xbb\xbfmine\r\n"}
    print(f"seed {seed}: {len(changed)} of 60 captions changed")
    assert len(texts) == 60
    assert set(new) <= changed
    assert all(texts[stem] == text.encode() for stem, text in new.items())
    undo = subprocess.run([*command[:3], "--undo", str(place)], capture_output=True, text=True, check=False)
    assert undo.returncode == 0, undo.stderr
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} == before
    # What was changed is what a whole run gives.
    subprocess.run([*command, "--existing", "replace"], stdout=subprocess.DEVNULL, check=True)
    assert all((place / f"{stem}.txt").read_bytes() == texts[stem] for stem in changed)
