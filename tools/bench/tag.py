"""Times lora-tag, decoding alone beside it, and sd-scripts' tagger on the same pictures.

    python tools/bench/tag.py [--work DIR] [--repeat 5] [--peer DIR [--peer-python PYTHON]] [--vit N] [--json]

It makes its 200 pictures and its networks of random weights itself (with onnx) and keeps them in the work folder.
The instant network stands for a GPU that is never waited for. ``--vit 4`` adds a network of ViT-B's size on the CPU,
in fp32 and int8. ``--peer`` runs an unmodified checkout of sd-scripts, with this Python unless ``--peer-python`` names
one that has its packages. Jobs take turns, and the best of the runs counts. The exit status is 1 if a goal was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measuring import Timing, measure, work_folder

DECODE = """
import sys, os
from concurrent.futures import ThreadPoolExecutor
from PIL import Image
def load(path):
    with Image.open(path) as picture:
        picture.load()
cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
with ThreadPoolExecutor(cores) as pool:
    list(pool.map(load, sys.argv[1:]))
"""
PEER = "finetune/tag_images_by_wd14_tagger.py"
REPOSITORY = "bench/instant"


@dataclass(kw_only=True)
class Job:
    """A command over ``count`` pictures. ``fresh`` jobs start without the score cache."""

    name: str
    command: Sequence[str]
    count: int
    fresh: bool = True
    peer: bool = False
    runs: list[Timing] = field(default_factory=list)

    def best(self) -> Timing:
        """The least of each figure."""
        return Timing(
            min(run.wall for run in self.runs),
            min(run.cpu for run in self.runs),
            min(run.megabytes for run in self.runs),
        )


def plan(options: argparse.Namespace, work: Path) -> list[Job]:
    """All jobs, with their files made."""
    maker = [sys.executable, str(Path(__file__).with_name("tag_files.py")), str(work), str(options.pictures)]
    subprocess.run([*maker, "vit"] if options.vit else maker, check=True)
    pictures = sorted(str(path) for path in (work / "pictures").glob("*.[jp]*g"))[: options.pictures]
    instant, vit = work / "models" / "bench_instant", work / "models" / "bench_vit"
    count = len(pictures)
    tag = [sys.executable, "-m", "lorapipe_tagger", "-q", "--existing", "replace", "--device", "cpu"]
    with_instant = [*tag, "--model", str(instant)]
    jobs = [
        Job(name="decoding alone", command=[sys.executable, "-c", DECODE, *pictures], count=count),
        Job(name="lora-tag", command=[*with_instant, *pictures], count=count),
        Job(
            name="lora-tag, other thresholds",
            command=[*with_instant, "--general", "0.5", *pictures],
            count=count,
            fresh=False,
        ),
        Job(
            name="lora-tag --preprocess kohya",
            command=[*with_instant, "--preprocess", "kohya", *pictures],
            count=count,
        ),
        Job(name="lora-tag, one picture", command=[*with_instant, pictures[1]], count=1),
        Job(name="lora-tag, cached picture", command=[*with_instant, pictures[1]], count=1, fresh=False),
    ]
    if options.peer:
        script = [
            options.peer_python or sys.executable,
            str(options.peer / PEER),
            str(work / "pictures"),
            "--onnx",
            "--repo_id",
            REPOSITORY,
        ]
        script += ["--model_dir", str(work / "models"), "--remove_underscore"]
        best = [*script, "--batch_size", "8", "--max_data_loader_n_workers", "2"]
        jobs += [
            Job(name="sd-scripts, defaults", command=script, count=count, peer=True),
            Job(name="sd-scripts, batch 8, 2 workers", command=best, count=count, peer=True),
        ]
    if options.vit:
        few = pictures[: options.vit]
        jobs += [
            Job(name="lora-tag, ViT-B", command=[*tag, "--model", str(vit), *few], count=len(few)),
            Job(
                name="lora-tag, ViT-B --int8",
                command=[*tag, "--model", str(vit), "--int8", *few],
                count=len(few),
            ),
        ]
        if options.peer:
            jobs.append(peer_vit(options, work, few))
    return jobs


def peer_vit(options: argparse.Namespace, work: Path, few: Sequence[str]) -> Job:
    """sd-scripts over the same few pictures with the network of real size."""
    folder = work / "few"
    folder.mkdir(exist_ok=True)
    for path in few:
        if not (folder / Path(path).name).exists():
            shutil.copy(path, folder)
    words = ["--onnx", "--repo_id", "bench/vit", "--model_dir", str(work / "models"), "--remove_underscore"]
    python = options.peer_python or sys.executable
    command = [python, str(options.peer / PEER), str(folder), *words]
    return Job(name="sd-scripts, ViT-B", command=command, count=len(few), peer=True)


def run(jobs: Sequence[Job], work: Path, repeat: int, peer: Path | None) -> None:
    """All jobs in turn, ``repeat`` times over; int8 networks are made before the first."""
    cache = work / "cache"
    os.environ["XDG_CACHE_HOME"] = str(cache)
    # Compiled modules are kept, as they are where programs are installed.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(work / "pycache")
    for job in jobs:
        if "--int8" in job.command:
            measure(job.command, [], 1)
    for _ in range(repeat):
        for job in jobs:
            if job.fresh:
                for path in (cache / "lorapipe").glob("tagger.sqlite*"):
                    path.unlink()
            if not job.fresh:
                measure([part for part in job.command if part not in ("--general", "0.5")], [], 1)
            job.runs.append(measure(job.command, [], 1, python_path=peer if job.peer else None))


def rows_of(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Figures of each job, and what they are to be."""
    best = {job.name: job.best() for job in jobs}
    decoding = best["decoding alone"]
    ours = best["lora-tag"]
    rows = []
    for job in jobs:
        one = best[job.name]
        row: dict[str, Any] = {
            "job": job.name,
            "wall_s": round(one.wall, 3),
            "pictures_per_s": round(job.count / one.wall, 1),
            "cpu_ms_per_picture": round(1000 * one.cpu / job.count, 1),
            "peak_mb": round(one.megabytes),
            "goals": {},
        }
        if job.name == "lora-tag":
            row["cpu_over_decoding"] = round(ours.cpu / decoding.cpu, 2)
            row["goals"] = {"cpu_over_decoding": [2.0, row["cpu_over_decoding"] <= 2.0]}
            row["goals"]["peak_mb"] = [500, row["peak_mb"] <= 500]
        elif job.name == "lora-tag, one picture":
            row["goals"] = {"wall_s": [1.0, row["wall_s"] <= 1.0]}
        elif job.name == "lora-tag, other thresholds":
            # Of the command's start, which the run over one picture shows, the rate knows nothing.
            row["per_s_after_start"] = round(
                job.count / max(1e-3, one.wall - best["lora-tag, cached picture"].wall)
            )
            row["goals"] = {"per_s_after_start": [1000, row["per_s_after_start"] >= 1000]}
        elif job.peer and "ViT-B" in job.name:
            row["times_slower"] = round(one.wall / best["lora-tag, ViT-B"].wall, 2)
            row["goals"] = {"times_slower": [1.0, row["times_slower"] >= 1.0]}
        elif job.peer:
            least = 2.2 if "defaults" in job.name else 1.4
            row["times_slower"] = round(one.wall / ours.wall, 2)
            row["goals"] = {"times_slower": [least, row["times_slower"] >= least]}
        elif job.name.endswith("--int8"):
            row["times_fp32"] = round(best["lora-tag, ViT-B"].wall / one.wall, 2)
        rows.append(row)
    return rows


def show(row: dict[str, Any]) -> None:
    """A line of the table."""
    extra = "".join(
        f"  {name} {row[name]}"
        for name in ("cpu_over_decoding", "per_s_after_start", "times_slower", "times_fp32")
        if name in row
    )
    goals = ", ".join(
        f"{name} {goal:g} {'met' if met else 'MISSED'}" for name, (goal, met) in row["goals"].items()
    )
    print(
        f"{row['job']:<32} {row['wall_s']:8.2f} s {row['pictures_per_s']:8.1f}/s  cpu "
        f"{row['cpu_ms_per_picture']:7.1f} ms  {row['peak_mb']:5d} MB{extra}  {goals}",
        flush=True,
    )


def main() -> int:
    """Run everything; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder for the files; a temporary one by default")
    parser.add_argument("--pictures", type=int, default=200, help="how many; 200 by default")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each command, the best counts")
    parser.add_argument("--peer", type=Path, help="a checkout of sd-scripts to time beside")
    parser.add_argument("--peer-python", help="Python of an environment that has sd-scripts' packages")
    parser.add_argument(
        "--vit", type=int, default=0, metavar="PICTURES", help="pictures for a network of real size"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per job on stdout")
    options = parser.parse_args()
    with work_folder(options.work) as folder:
        work = folder.resolve()
        jobs = plan(options, work)
        run(jobs, work, options.repeat, options.peer)
        rows = rows_of(jobs)
        for row in rows:
            print(json.dumps(row), flush=True) if options.json else show(row)
    return 1 if any(not met for row in rows for _, met in row["goals"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
