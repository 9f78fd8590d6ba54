"""Times lora-train from the command to its first step, on bases of full size with random weights.

    python tools/bench/startup.py [A C] [--work DIR] [--runs 2] [--where] [--json]

A: SD 1.5, 512 px, batch 4, dim 64, text encoder trained, 40 pictures; C: SDXL, 1024 px, batch 4, dim 32, UNet alone
with cached text, 16 pictures. Every run encodes its pictures (and C its captions) anew. The first run of a machine
compiles Triton's kernels too; the later ones find them. ``--where``: one more run, and what its time went into. The
base is made once, as a diffusers folder of 2 or 7 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from measuring import print_row, work_folder
from phases import phases
from PIL import Image

TESTS = Path(__file__).parents[2] / "tests"
GOALS = {"A": 15.0, "C": 20.0}


@dataclass(frozen=True)
class Run:
    """A base of full_bases.py, how many pictures of which size, and the options."""

    base: str
    pictures: int
    size: int
    options: Sequence[str]


RUNS = {
    "A": Run("sd15", 40, 512, ("--network_dim", "64", "--max_token_length", "225", "--clip_skip", "2")),
    "C": Run(
        "sdxl", 16, 1024, ("--network_dim", "32", "--network_train_unet_only", "--cache_text_encoder_outputs")
    ),
}


def make_base(name: str, folder: Path) -> Path:
    """The base, made on the card where there is one."""
    if not (folder / "model_index.json").exists():
        maker = TESTS / "support/full_bases.py"
        if not maker.is_file():
            raise SystemExit(
                f"no base {folder}, and {maker}, which makes it, is not there: run this in a whole checkout, or give "
                f"--work a folder with {name}/ of a run before"
            )
        sys.path.insert(0, str(TESTS))
        from support.full_bases import save_full

        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            save_full(name, folder)
    return folder


def make_pictures(folder: Path, count: int, size: int) -> Path:
    """Pictures of noise with captions, somewhat larger than they are trained at."""
    draw = random.Random(0)
    place = folder / "10_noise"
    place.mkdir(parents=True, exist_ok=True)
    side = size * 5 // 4
    for number in range(count):
        Image.frombytes("RGB", (side, side), draw.randbytes(side * side * 3)).save(
            place / f"{number:03d}.jpg", quality=90
        )
        (place / f"{number:03d}.txt").write_text(f"noise, number {number}, a, b, c\n")
    return folder


def first_step(run: Run, base: Path, pictures: Path, work: Path, samples: Path | None = None) -> float:
    """Seconds from the command until the first step is in metrics.jsonl. Raises RuntimeError with what was said.

    ``samples``: where to write what the program was at (see phases.py).
    """
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(work / "cache", ignore_errors=True)
    words = [sys.executable, "-m", "lorapipe_engine"]
    if samples is not None:
        words = [sys.executable, str(Path(__file__).with_name("phases.py")), str(samples)]
    words += ["--base", str(base), "--train_data_dir", str(pictures)]
    words += ["--output_dir", str(out), "--output_name", "net", "--cache_dir", str(work / "cache")]
    words += [
        "--resolution",
        str(run.size),
        "--train_batch_size",
        "4",
        "--max_train_steps",
        "1",
        "--overwrite",
    ]
    environment = {**os.environ}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    began = time.perf_counter()
    with (work / "log.txt").open("w") as log:
        process = subprocess.Popen([*words, *run.options], stdout=log, stderr=log, env=environment)
        metrics = out / "net.metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.02)
        seconds = time.perf_counter() - began
    if process.wait():
        raise RuntimeError((work / "log.txt").read_text()[-2000:])
    return seconds


def read_options(
    words: Sequence[str] | None, about: str | None, workloads: Iterable[str], *, runs: int
) -> argparse.Namespace:
    """The options of a benchmark of starts. ``about``: its docstring; ``runs``: how many where nothing is said."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    parser.add_argument("workloads", nargs="*", choices=[*workloads, []], metavar="A C")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--where", action="store_true", help="tell what the time goes into")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """1 if a goal was missed by the last run."""
    options = read_options(words, __doc__, RUNS, runs=2)
    missed = False
    with work_folder(options.work) as work:
        for name in options.workloads or RUNS:
            run = RUNS[name]
            base = make_base(run.base, work / run.base)
            pictures = make_pictures(work / f"pictures-{name}", run.pictures, run.size)
            times = [round(first_step(run, base, pictures, work), 1) for _ in range(options.runs)]
            missed |= times[-1] > GOALS[name]
            row = {"workload": name, "pictures": run.pictures, "seconds": times, "goal": GOALS[name]}
            print_row(row, as_json=options.json)
            if options.where:
                samples = work / "samples.jsonl"
                first_step(run, base, pictures, work, samples)
                for phase in phases(samples):
                    line = f"{phase.start:8.1f} s  {phase.seconds:6.2f} s  {phase.what}"
                    print(json.dumps(asdict(phase)) if options.json else line, flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
