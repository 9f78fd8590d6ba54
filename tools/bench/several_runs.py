"""Times how soon each run of a queue takes its first step, on bases of full size with random weights.

    python tools/bench/several_runs.py [A C] [--work DIR] [--runs 3] [--where] [--json]
    python tools/bench/several_runs.py small     the demo base, on a CPU too

The workloads are those of startup.py, four steps each; a run differs from the one before in its seed and rate alone, as
in a queue that varies them. Start: from the line that names the run to its first step in metrics.jsonl. Memory is the
most of that time: of the process, and of the card beyond what was taken before. ``--where``: what the second run's
start goes into.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from measuring import print_row, work_folder
from phases import phases
from startup import RUNS, Run, make_base, make_pictures, read_options

SMALL = Run(
    "demo", 8, 64, ("--network_dim", "4", "--network_train_unet_only", "--cache_text_encoder_outputs")
)
WORKLOADS = {**RUNS, "small": SMALL}
GOALS = {"A": 2.0, "C": 3.0, "small": 60.0}  # seconds until the first step of the second run
BEGINS = re.compile(r"run (\d+) of \d+: ")


@dataclass
class Start:
    """One run's start: when it began, counted from the command, how long it took, and the most memory of it."""

    run: int
    began: float
    seconds: float = 0.0
    process_gib: float = 0.0
    card_gib: float = 0.0


@dataclass
class Watch:
    """Follows a queue from outside: its lines, its metrics files, its memory."""

    out: Path
    process: subprocess.Popen[str]
    began: float = field(default_factory=time.perf_counter)
    starts: list[Start] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    free: int = field(default_factory=lambda: _free())

    def read_lines(self) -> None:
        """Keep what is said, and note where a run begins."""
        for line in self.process.stderr or ():
            self.lines.append(line)
            if begun := BEGINS.search(line):
                self.starts.append(Start(int(begun[1]), time.perf_counter() - self.began))

    def follow(self) -> None:
        """Look every 5 ms until the process ends."""
        while self.process.poll() is None:
            for start in self.starts[-1:]:
                if not start.seconds:
                    self._look(start)
            time.sleep(0.005)

    def _look(self, start: Start) -> None:
        start.process_gib = max(start.process_gib, _resident(self.process.pid) / 2**30)
        start.card_gib = max(start.card_gib, (self.free - _free()) / 2**30)
        metrics = self.out / f"net-seed={start.run}.metrics.jsonl"
        if metrics.exists() and metrics.stat().st_size:
            start.seconds = time.perf_counter() - self.began - start.began


def _free() -> int:
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0


def _resident(pid: int) -> int:
    """Bytes of a process that are in memory; 0 where the system does not tell."""
    try:
        rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(row.split()[1]) << 10 for row in rows if row.startswith("VmRSS"))


def train_queue(run: Run, base: str, pictures: Path, work: Path, runs: int, samples: Path | None) -> Watch:
    """Train ``runs`` runs in a row. Raises RuntimeError with what was said where they fail."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = [sys.executable, "-m", "lorapipe_engine"]
    if samples is not None:
        words = [sys.executable, str(Path(__file__).with_name("phases.py")), str(samples)]
    words += ["--base", base, "--train_data_dir", str(pictures), "--output_dir", str(out), *run.options]
    words += ["--output_name", "net", "--vary", f"seed={','.join(str(seed + 1) for seed in range(runs))}"]
    words += ["--resolution", str(run.size), "--train_batch_size", "4", "--max_train_steps", "4"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    watch = Watch(out, process)
    reader = threading.Thread(target=watch.read_lines)
    reader.start()
    watch.follow()
    reader.join()
    if process.returncode or len(watch.starts) != runs:
        raise RuntimeError("".join(watch.lines)[-3000:])
    return watch


def second_start(samples: Path, watch: Watch) -> Iterator[str]:
    """What the second run's start went into; the sampler begins about when the interpreter is up."""
    second = watch.starts[1]
    for phase in phases(samples, least=0.05):
        if second.began - 0.5 <= phase.start <= second.began + second.seconds:
            yield f"{phase.start - second.began:8.2f} s  {phase.seconds:6.2f} s  {phase.what}"


def main(words: Sequence[str] | None = None) -> int:
    """1 if the second run of a workload began later than its goal."""
    options = read_options(words, __doc__, WORKLOADS, runs=3)
    missed = False
    with work_folder(options.work) as work:
        for name in options.workloads or RUNS:
            run = WORKLOADS[name]
            base = "demo" if name == "small" else str(make_base(run.base, work / run.base))
            pictures = make_pictures(work / f"pictures-{name}", run.pictures, run.size)
            samples = work / "samples.jsonl" if options.where else None
            torch.cuda.empty_cache()
            watch = train_queue(run, base, pictures, work, options.runs, samples)
            missed |= watch.starts[1].seconds > GOALS[name]
            for start in watch.starts:
                row = {"workload": name, "goal": GOALS[name], **asdict(start)}
                rounded = {k: round(v, 2) if isinstance(v, float) else v for k, v in row.items()}
                print_row(rounded, as_json=options.json)
            for line in second_start(samples, watch) if samples else ():
                print(line, flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
