"""Times lora-check and lora-repeats on pictures that it makes itself.

    python tools/bench/check.py [--pictures 2000] [--work DIR] [--jobs check html nolook buckets repeats]

The pictures have sides of 1,000 to 1,500 pixels, drawn from a fixed seed: half JPEG, a third PNG, the rest WebP, each
with a caption. One in 20 is a copy of another one: recompressed, scaled to 70 %, or the same file. What the search
finds of them, and what it finds besides, is told too.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from measuring import measure
from PIL import Image, ImageDraw

COPY_EVERY = 20
GOAL_SECONDS = 60.0  # for 2,000 pictures on two cores
TAGS = [f"tag {number}" for number in range(800)]
JOBS = {
    "check": ["--json"],
    "html": ["--json", "--force", "--html"],
    "nolook": ["--json", "--no-look"],
    "buckets": ["--json"],
}


def make(work: Path, count: int) -> Path:
    """The dataset, made once: ``work/set-COUNT/10_thing``, and the planted copies in ``work/set-COUNT.json``."""
    root = work / f"set-{count}"
    facts = work / f"set-{count}.json"
    if facts.is_file():
        return root
    shutil.rmtree(root, ignore_errors=True)
    folder = root / "10_thing"
    folder.mkdir(parents=True)
    originals = [number for number in range(count) if number % COPY_EVERY != COPY_EVERY - 1]
    with ProcessPoolExecutor() as pool:
        names = dict(zip(originals, pool.map(_draw, [(folder, number) for number in originals]), strict=True))
    pairs = [_copy(folder, number, names[number - 7]) for number in range(count) if number not in names]
    facts.write_text(json.dumps(pairs))
    return root


def _draw(task: tuple[Path, int]) -> str:
    """One picture: soft colours, shapes with hard edges, grain; and its caption."""
    folder, number = task
    draw = random.Random(number)
    rng = np.random.default_rng(number)
    size = (draw.randrange(1000, 1501), draw.randrange(1000, 1501))
    soft = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    pen = ImageDraw.Draw(soft)
    for _ in range(30):
        x, y, reach = draw.randrange(size[0]), draw.randrange(size[1]), draw.randrange(20, 300)
        shape = draw.choice([pen.ellipse, pen.rectangle])
        shape((x, y, x + reach, y + draw.randrange(20, 300)), fill=tuple(rng.integers(0, 256, 3).tolist()))
    grain = rng.integers(-5, 6, (size[1], size[0], 1))
    picture = Image.fromarray((np.asarray(soft).astype(np.int16) + grain).clip(0, 255).astype(np.uint8))
    suffix = ("jpg", "png", "jpg", "png", "jpg", "webp")[number % 6]
    name = f"{number:05}.{suffix}"
    picture.save(folder / name, quality=92) if suffix != "png" else picture.save(folder / name)
    _write_caption(folder / name, draw)
    return name


def _copy(folder: Path, number: int, original: str) -> list[str]:
    """A copy of another way each time; returns both names."""
    kind = number // COPY_EVERY % 3
    name = f"{number:05}{Path(original).suffix if kind == 0 else '.jpg'}"
    if kind == 0:
        shutil.copyfile(folder / original, folder / name)
    else:
        with Image.open(folder / original) as opened:
            picture = opened.convert("RGB")
        if kind == 1:
            picture = picture.resize(
                (picture.width * 7 // 10, picture.height * 7 // 10), Image.Resampling.LANCZOS
            )
        picture.save(folder / name, quality=70)
    _write_caption(folder / name, random.Random(number))
    return sorted((original, name))


def _write_caption(picture: Path, draw: random.Random) -> None:
    picture.with_suffix(".txt").write_text(", ".join(["thing", *draw.sample(TAGS, draw.randrange(8, 30))]))


def command(job: str, root: Path, work: Path) -> list[str]:
    """The command line of a job."""
    bin_folder = Path(sys.executable).parent
    if job == "repeats":
        return [str(bin_folder / "lora-repeats"), str(root), "-o", str(work / "built"), "--link", "hard"]
    words = [
        str(bin_folder / "lora-check"),
        *(["buckets"] if job == "buckets" else []),
        str(root),
        *JOBS[job],
    ]
    return [*words, str(work / "report.html")] if job == "html" else words


def found_copies(root: Path, work: Path, count: int) -> dict[str, Any]:
    """Planted pairs that the search finds, and groups that are none."""
    done = subprocess.run(
        [*command("check", root, work), "--only", "duplicate", "--only", "near-duplicate"],
        capture_output=True,
        check=False,
    )
    findings = json.loads(done.stdout)["findings"]
    groups = [{Path(path).name for path in finding["paths"]} for finding in findings]
    pairs = json.loads((work / f"set-{count}.json").read_text())
    hit = sum(any(set(pair) <= group for group in groups) for pair in pairs)
    wrong = sum(not any(set(pair) <= group for pair in pairs) for group in groups)
    return {"planted": len(pairs), "found": hit, "others": wrong}


def main() -> None:
    """Make the pictures, time the jobs, print a line of JSON for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--jobs", nargs="*", default=[*JOBS, "repeats"], choices=[*JOBS, "repeats"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        root = make(work, given.pictures)
        for job in given.jobs:
            shutil.rmtree(work / "built", ignore_errors=True)
            measured = measure(command(job, root, work), [], 1)
            row: dict[str, Any] = {
                "job": job,
                "pictures": given.pictures,
                "wall_s": round(measured.wall, 2),
                "cpu_s": round(measured.cpu, 2),
                "peak_mb": round(measured.megabytes),
            }
            if job in ("check", "html"):
                row["goal_s"] = GOAL_SECONDS * given.pictures / 2000
                row["met"] = measured.wall <= row["goal_s"]
            print(json.dumps(row), flush=True)
        if "check" in given.jobs:
            print(json.dumps(found_copies(root, work, given.pictures)))


if __name__ == "__main__":
    main()
