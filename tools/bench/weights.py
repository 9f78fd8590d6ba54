"""Times lora-inspect, lora-resize, lora-extract, lora-convert and lora-merge on files of real SD 1.5 and SDXL shapes.

    python tools/bench/weights.py [resize] [merge] [networks] [inspect] [extract] [convert] [--work DIR] [--repeat 5]
                                  [--peer SD_SCRIPTS]

Beside each job stands ``cp`` of its largest file in the same run; on another machine compare the ratios, not
the seconds. With ``--peer`` an unmodified checkout of sd-scripts does the same jobs (with this Python, which
then needs its packages). Files are made once and kept in the work folder: up to 10 GB for the merges.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import Job, measure, work_folder
from weights_files import Files

PARTS = ("inspect", "resize", "merge", "networks", "extract", "convert")


def run_job(job: Job, work: Path, repeat: int, peer: Path | None) -> dict[str, Any]:
    """Times of a job, of ``cp``, and of the peer where there is one."""
    copy = work / "copy.tmp"
    plain = measure(["cp", str(job.copied), str(copy)], [copy], repeat)
    copy.unlink(missing_ok=True)
    ours = measure(job.command, job.outputs, repeat)
    start = measure(job.start, job.outputs, repeat).wall if job.start else 0.0
    row: dict[str, Any] = {
        "job": job.name,
        "wall_s": round(ours.wall, 3),
        "cpu_s": round(ours.cpu, 3),
        "peak_mb": round(ours.megabytes),
        "cp_s": round(plain.wall, 3),
        "over_cp": round((ours.wall - start) / plain.wall, 2),
    }
    if job.start:
        row["start_s"] = round(start, 3)
    goals = (
        ("wall_s", job.goal_seconds),
        ("over_cp", job.goal_ratio),
        ("peak_mb", job.goal_megabytes),
    )
    row["goals"] = {name: {"at_most": goal, "met": row[name] <= goal} for name, goal in goals if goal}
    if peer and job.peer:
        script, *words = job.peer
        command = [sys.executable, str(peer / script), *words]
        other = measure(command, job.peer_outputs or job.outputs, 1, python_path=peer)
        row |= {"peer_s": round(other.wall, 2), "peer_mb": round(other.megabytes)}
        row["faster"] = round(other.wall / ours.wall, 1)
    for output in job.outputs:
        output.unlink(missing_ok=True)
    return row


def show(row: dict[str, Any]) -> None:
    goals = ", ".join(
        f"{name} <= {goal['at_most']:g} {'met' if goal['met'] else 'MISSED'}"
        for name, goal in row["goals"].items()
    )
    peer = (
        f"  sd-scripts {row['peer_s']} s ({row['faster']}x), {row['peer_mb']} MB" if "peer_s" in row else ""
    )
    start = f" beyond a start of {row['start_s']:.2f} s" if "start_s" in row else ""
    print(
        f"{row['job']:<44} {row['wall_s']:7.2f} s  cpu {row['cpu_s']:6.2f} s  {row['peak_mb']:5d} MB  "
        f"cp {row['cp_s']:.2f} s ({row['over_cp']}x{start})  {goals}{peer}",
        flush=True,
    )


def main() -> int:
    """Run the chosen parts; 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--work", type=Path, help="folder for the files; a temporary one by default")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each command, the median counts")
    parser.add_argument("--peer", type=Path, help="a checkout of sd-scripts to time beside")
    parser.add_argument("--json", action="store_true", help="one JSON object per job on stdout")
    options = parser.parse_args()
    parts = options.parts or [
        part for part in PARTS if (Path(__file__).parent / f"weights_{part}.py").exists()
    ]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    missed = 0
    with work_folder(options.work) as work:
        for part in parts:
            jobs: Callable[[Files, Path], list[Job]] = importlib.import_module(f"weights_{part}").jobs
            for job in jobs(Files(work), work):
                row = run_job(job, work, options.repeat, options.peer)
                missed += any(not goal["met"] for goal in row["goals"].values())
                if options.json:
                    print(json.dumps(row), flush=True)
                else:
                    show(row)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
