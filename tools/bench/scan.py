"""Times the scan of a large folder: headers, captions and the plan of buckets and batches, nothing decoded.

    python tools/bench/scan.py [--pictures 200000] [--work DIR] [--jobs train check] [--runs 1]

The pictures are files of their own with a whole header and next to no pixels: PNG, JPEG (some turned by EXIF) and
WebP with sides of 400 to 2,600 pixels, nearly every size another, each with a caption of 15 to 40 tags. ``train``:
what lora-train does before it opens the base, and the batches of an epoch, in a process with all that lora-train
imports, its bar on a terminal; ``check``: ``lora-check buckets``.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from measuring import measure
from PIL import Image

GOAL_SECONDS = 60.0  # for 200,000 pictures on two cores
GOAL_MEGABYTES = 1000.0
JOBS = ("train", "check")
TAGS = [f"some tag {number}" for number in range(4000)]
_SOF = b"\xff\xc0"


def make(work: Path, count: int) -> Path:
    """The folder, made once: ``work/scan-COUNT/1_thing``."""
    root = work / f"scan-{count}"
    folder = root / "1_thing"
    if root.is_dir():
        return root
    partial = work / f"scan-{count}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    (partial / folder.name).mkdir(parents=True)
    draw = random.Random(count)
    models = _models()
    for number in range(count):
        width, height = draw.randrange(400, 2601), draw.randrange(400, 2601)
        suffix, data = _picture(number, (width, height), models)
        stem = partial / folder.name / f"{number:07}"
        stem.with_suffix(suffix).write_bytes(data)
        stem.with_suffix(".txt").write_text(", ".join(draw.sample(TAGS, draw.randrange(15, 41))))
    partial.rename(root)
    return root


def _models() -> dict[str, bytes]:
    """A small file of each kind, whose size is then written over."""
    models = {}
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, form, more in (
        ("jpeg", "JPEG", {}),
        ("turned", "JPEG", {"exif": turned}),
        ("webp", "WEBP", {"quality": 50}),
    ):
        file = io.BytesIO()
        Image.new("RGB", (16, 16), (90, 120, 60)).save(file, form, **more)
        models[name] = file.getvalue()
    return models


def _picture(number: int, size: tuple[int, int], models: dict[str, bytes]) -> tuple[str, bytes]:
    """Suffix and bytes of a picture that says it is of ``size``."""
    kind = ("png", "jpeg", "png", "jpeg", "turned", "webp")[number % 6]
    width, height = size
    if kind == "png":
        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(64))), (b"IEND", b""))
        body = b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
        return ".png", b"\x89PNG\r\n\x1a\n" + body
    data = bytearray(models[kind])
    if kind == "webp":
        # RIFF, its size, WEBP, "VP8 ", its size, three bytes of a frame's tag, three of a mark; then both sides.
        struct.pack_into("<HH", data, 26, width, height)
        return ".webp", bytes(data)
    struct.pack_into(">HH", data, data.index(_SOF) + 5, height, width)
    return ".jpg", bytes(data)


# -------------------------------------------------------------------------------- in a process of its own


def scan_as_training(root: Path) -> None:
    """What lora-train does before it opens the base, and the batches of the first epoch; prints a line of JSON."""
    import lorapipe_engine.train.session  # noqa: F401  with torch and all that a run needs
    from lorapipe_engine.datasets.scan import scan
    from lorapipe_engine.pictures.batches import epoch_batches
    from lorapipe_engine.settings import DataSettings

    begun = time.perf_counter()
    dataset = scan(DataSettings(train_data_dir=root, resolution=(768, 768), train_batch_size=4), 42)
    scanned = time.perf_counter()
    batches = epoch_batches(dataset.buckets, dataset.repeats, dataset.batch_sizes, 42, 0)
    planned = time.perf_counter()
    facts = {
        "scan_s": round(scanned - begun, 2),
        "plan_s": round(planned - scanned, 2),
        "pictures": len(dataset.pictures),
        "buckets": len(set(dataset.buckets)),
        "batches": len(batches),
    }
    print(json.dumps(facts), flush=True)


def time_training(root: Path) -> dict[str, Any]:
    """The scan with its messages on a terminal: figures of the process, and what its bar showed last."""
    import pty
    import termios
    import threading

    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    shown = bytearray()

    def listen() -> None:
        # The terminal's end reads as an error on Linux, as an end of file elsewhere.
        try:
            while block := os.read(ours, 1 << 16):
                shown.extend(block)
        except OSError:
            pass

    ear = threading.Thread(target=listen)
    ear.start()
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, __file__, "--scan", str(root)], stdout=subprocess.PIPE, stderr=theirs
    )
    os.close(theirs)
    assert process.stdout is not None
    facts = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    ear.join()
    os.close(ours)
    text = shown.decode(errors="replace")
    if process.returncode:
        raise RuntimeError(text[-2000:])
    bars = [line.strip() for line in text.split("\r") if line.strip().startswith("scan:")]
    return {
        **_figures(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 2**10),
        **json.loads(facts),
        "bar": bars[len(bars) // 2] if bars else None,
    }


def time_check(root: Path) -> dict[str, Any]:
    """``lora-check buckets``."""
    words = [
        *(str(Path(sys.executable).parent / "lora-check"), "buckets", str(root)),
        *("--resolution", "768,768", "--train_batch_size", "4"),
    ]
    measured = measure(words, [], 1)
    return _figures(measured.wall, measured.cpu, measured.megabytes)


def _figures(wall: float, cpu: float, megabytes: float) -> dict[str, Any]:
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2), "peak_mb": round(megabytes)}


def main() -> None:
    """Make the folder, time the jobs, print a line of JSON for each run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=200_000)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--jobs", nargs="*", default=JOBS, choices=JOBS)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--scan", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.scan:
        scan_as_training(given.scan)
        return
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        root = make(work, given.pictures)
        for job in given.jobs:
            for _ in range(given.runs):
                row = {"job": job, "files": given.pictures}
                row |= time_training(root) if job == "train" else time_check(root)
                row["goal_s"] = GOAL_SECONDS * given.pictures / 200_000
                row["met"] = row["wall_s"] <= row["goal_s"] and row["peak_mb"] <= GOAL_MEGABYTES
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
