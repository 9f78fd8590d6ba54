"""Times lora-clean on captions that it makes itself.

    python tools/bench/clean.py [--captions 50000] [--work DIR] [--runs 3] [--jobs files records dry undo]

The captions have 15 to 40 tags out of 6,000, drawn from a fixed seed, as a tagger or a booru gives them: underscores,
repeats, background tags, ratings, some people. The options are those of a typical character set: a trigger, a file of
tags to drop, spaces, an alias list of 3,000 names, implications, overlap, several people. ``files``: caption files in
one folder, changed in place with a journal; ``records``: the same as records from stdin to stdout, no files;
``dry``: as ``files`` but only shown; ``undo``: the run taken back.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

from measuring import Timing, measure

GOAL_SECONDS = 5.0  # for 50,000 captions on two cores
COLOURS = "black white red blue green yellow purple pink brown grey".split()  # noqa: SIM905
THINGS = "shirt skirt dress hair eyes bow ribbon gloves hat jacket shoes background flower socks cape".split()  # noqa: SIM905
PEOPLE = ["1girl, solo", "1girl", "1boy, solo", "2girls, multiple_girls", "1girl, 1boy"]


def make_caption(draw: random.Random) -> str:
    """One caption with underscores, repeats and things to drop."""
    tags = [draw.choice(PEOPLE)]
    for _ in range(draw.randrange(14, 39)):
        if draw.random() < 0.4:
            tags.append(f"{draw.choice(COLOURS)}_{draw.choice(THINGS)}")
        else:
            tags.append(f"some_tag_{int(draw.paretovariate(0.5)) % 6000}")
    tags.append(draw.choice(THINGS))
    tags.append("rating:" + draw.choice(["general", "sensitive"]))
    return ", ".join(tags)


def make_folder(folder: Path, captions: list[str]) -> None:
    """The captions as files."""
    folder.mkdir(parents=True)
    for number, caption in enumerate(captions):
        (folder / f"{number:06d}.txt").write_text(f"{caption}\n", encoding="utf-8")
    if hasattr(os, "sync"):
        os.sync()  # captions that somebody has, not ones that are still on their way to the disk


def make_lists(work: Path) -> list[str]:
    """Files for the options, and the options."""
    draw = random.Random(1)
    aliases = "".join(f"some_tag_{3 * n},other_tag_{n}\n" for n in range(2000))
    aliases += "".join(f"{c}_gloves,{c}_mittens\n" for c in COLOURS)
    (work / "aliases.csv").write_text(aliases)
    implied = "".join(f"some_tag_{3 * n + 1},some_tag_{3 * n + 2}\n" for n in range(1500))
    (work / "implications.csv").write_text(implied)
    drop = [f"some_tag_{draw.randrange(6000)}" for _ in range(200)]
    (work / "drop.txt").write_text("\n".join([*drop, "*background", "re:rating:.*"]))
    return [
        "--trigger", "shiina mayuri", "--drop-file", str(work / "drop.txt"), "--spaces",
        "--aliases", str(work / "aliases.csv"), "--implications", str(work / "implications.csv"),
        "--overlap", "--several-people", "--replace", "purple_hair=violet hair", "--order", "people",
    ]  # fmt: skip


def run(name: str, number: int, work: Path, captions: list[str], options: list[str]) -> Timing:
    """The time of one job, the ``number``-th time."""
    program = "from lorapipe_dataset.clean.cli import main; main()"
    folder = work / f"{'files' if name == 'undo' else name}-{number}"
    if name == "records":
        records = work / "records.jsonl"
        lines = (json.dumps({"path": f"{n}.png", "caption": text}) for n, text in enumerate(captions))
        records.write_text("\n".join(lines))
        program = f"import os; os.dup2(os.open({str(records)!r}, os.O_RDONLY), 0); {program}"
        words = [*options, "--no-txt", "-"]
    elif name == "undo":
        words = ["--undo", str(folder)]
    else:
        make_folder(folder, captions)
        words = [*options, str(folder), *(["--dry-run"] if name == "dry" else [])]
    return measure([sys.executable, "-c", program, *words], (), 1)


def main() -> int:
    """Measure; 1 if the goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--captions", type=int, default=50_000)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--jobs", nargs="+", default=["files", "undo", "records", "dry"])
    words = parser.parse_args()
    work = words.work or Path(tempfile.mkdtemp(prefix="bench-clean-"))
    work.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    captions = [make_caption(draw) for _ in range(words.captions)]
    options = make_lists(work)
    missed = False
    for name in words.jobs:
        # There is one run to take back.
        times = [
            run(name, number, work, captions, options)
            for number in range(1 if name == "undo" else words.runs)
        ]
        best = min(time.wall for time in times)
        walls = ", ".join(f"{time.wall:.2f}" for time in times)
        cpu, memory = min(time.cpu for time in times), max(time.megabytes for time in times)
        print(f"{name:8} best {best:.2f} s of {walls}; CPU {cpu:.2f} s; {memory:.0f} MB")
        missed |= name == "files" and best > GOAL_SECONDS * words.captions / 50_000
    if words.work is None:
        shutil.rmtree(work)
    return int(missed)


if __name__ == "__main__":
    raise SystemExit(main())
