"""Shows that training on several cards is as fast, as exact and as safe as it should be.

    python tools/bench/cards.py [--cards N] [--minutes 3.5] [--only steps checks sample queue] [--out FOLDER]
    python tools/bench/cards.py --small            two CPU processes, tiny models
    python tools/bench/cards.py --one_card --only sample queue     two processes that have one card between them

``steps``: workloads A, C, D of train.py on one card and on all, the same batch a card. ``checks``: the demo base in
float32: N cards at batch B beside one at N x B, kill -9 of one process and of all and the same command again, who
writes, caches. ``sample``: cells shared out. ``queue``: runs shared out. With one card alone the last two can be tried,
whose processes exchange nothing on it: each is told that it is the first of its host. Prints a JSON line for each part
and a table last; the status is 1 where something is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

GOALS = {2: 1.9, 4: 3.7, 8: 7.2}
TRAIN = Path(__file__).with_name("train.py")
MODULE = ("-m", "lorapipe_engine")
SAMPLE = "from lorapipe_engine.sample_cli import sample_main; sample_main()"
PARTS = ("steps", "checks", "sample", "queue")


class OutOfTime(Exception):
    """The minutes are over."""


class Bench:
    """``cards`` processes, on CUDA or on the CPU, until ``until`` by the monotonic clock. ``one_card``: all on one."""

    def __init__(
        self, cards: int, *, small: bool, until: float, folder: Path, one_card: bool = False
    ) -> None:
        self.cards, self.small, self.until, self.folder, self.one_card = cards, small, until, folder, one_card
        self.rows: list[dict[str, Any]] = []
        self.started: list[subprocess.Popen[str]] = []

    def tell(self, part: str, good: bool | None, **figures: Any) -> None:
        """Print and keep what a part gave; ``good``: as it should be, None where nothing is asked."""
        row = {"part": part, "good": good, **figures}
        self.rows.append(row)
        print(json.dumps(row), flush=True)

    def start(
        self, words: Sequence[str], name: str, *, cards: int = 1, card: int = 0
    ) -> subprocess.Popen[str]:
        """Start Python with ``words``, in as many processes as cards; its talk goes to files of ``name``."""
        environment = {**os.environ, "MASTER_PORT": "0", "PYTHONUNBUFFERED": "1"}
        if self.small:
            environment["OMP_NUM_THREADS"] = "1"
        command = [sys.executable, *words]
        if cards > 1:
            count = ("--nproc_per_node", str(cards))
            launcher = ("-m", "torch.distributed.run", "--standalone", *count, "--no_python")
            first = ("env", "LOCAL_RANK=0") if self.one_card else ()
            command = [sys.executable, *launcher, *first, *command]
        elif not self.small:
            environment["CUDA_VISIBLE_DEVICES"] = str(card)
        process = subprocess.Popen(
            command,
            stdout=(self.folder / f"{name}.out").open("w"),
            stderr=(self.folder / f"{name}.err").open("w"),
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def finish(self, *started: subprocess.Popen[str]) -> list[int]:
        """Wait for processes; their statuses. Raises OutOfTime where the minutes are over."""
        try:
            return [process.wait(max(0.1, self.until - time.monotonic())) for process in started]
        except subprocess.TimeoutExpired as error:
            raise OutOfTime from error

    def kill_rest(self) -> None:
        """Kill what runs still."""
        for process in self.started:
            if process.poll() is None:
                kill_all(process)

    def said(self, name: str) -> list[str]:
        """The lines that a command wrote to stdout."""
        return (self.folder / f"{name}.out").read_text(errors="replace").splitlines()

    def told(self, name: str) -> list[str]:
        """The lines that a command wrote to stderr."""
        return (self.folder / f"{name}.err").read_text(errors="replace").splitlines()


def processes_of(launcher: int) -> list[int]:
    """The launcher's processes, in the order of their ranks."""
    ranks = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "environ").read_bytes().split(b"\0") if parent == launcher else []
        except OSError:
            continue
        for word in words:
            if word.startswith(b"RANK="):
                ranks[int(word[5:])] = int(folder.name)
    return [pid for _, pid in sorted(ranks.items())]


def kill_all(process: subprocess.Popen[str]) -> None:
    """kill -9 for a launcher and its processes."""
    for pid in [process.pid, *processes_of(process.pid)]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


# -------------------------------------------------------------------------------- steps


def measure_steps(bench: Bench, names: Sequence[str], steps: int) -> None:
    """Images a second of workloads on one card and on all. Those on one card run beside each other, a card each."""
    small = ("--small",) if bench.small else ()
    for first in range(0, len(names), bench.cards):
        alone = {
            name: bench.start(
                [str(TRAIN), *(small or (name,)), "--json", "--steps", str(steps)], f"{name}-1", card=card
            )
            for card, name in enumerate(names[first : first + bench.cards])
        }
        statuses = dict(zip(alone, bench.finish(*alone.values()), strict=True))
        for name, status in statuses.items():
            words = [str(TRAIN), *(small or (name,)), "--json", "--steps", str(steps)]
            (all_status,) = bench.finish(bench.start(words, f"{name}-N", cards=bench.cards))
            if status or all_status:
                bench.tell(f"steps {name}", False, one=last(bench, f"{name}-1"), all=last(bench, f"{name}-N"))
                continue
            one, together = (json.loads(bench.said(f"{name}-{which}")[-1]) for which in "1N")
            ratio = together["images_per_s"] / one["images_per_s"]
            goal = None if bench.small else GOALS.get(bench.cards)
            bench.tell(
                f"steps {name}",
                None if goal is None else ratio >= goal,
                one=one["images_per_s"],
                all=together["images_per_s"],
                ratio=round(ratio, 3),
                goal=goal,
                capture=f"{one['capture']}, {together['capture']}",
                ms=f"{one['median_ms']}, {together['median_ms']}",
                gradient_mb=together["gradient_mb"],
                exchange_ms=together["exchange_ms"],
                startup_s=f"{one['startup_s']}, {together['startup_s']}",
            )


def last(bench: Bench, name: str) -> str:
    """The last thing that a command told."""
    return " | ".join(bench.told(name)[-3:])[-400:]


# -------------------------------------------------------------------------------- checks


def words_of(bench: Bench, name: str, batch: int, epochs: int, cache: str) -> list[str]:
    """``lora-train`` on the demo base; results in a folder of ``name``."""
    fixed = "--base demo --resolution 64 --max_token_length 75 --network_dim 4 --output_name net --save_precision float"
    fixed += " --mixed_precision no --unet_lr 2e-4 --text_encoder_lr 1e-4 --cache_latents_to_disk"
    device = ["--device", "cpu"] if bench.small else []
    return [
        *(*MODULE, *fixed.split(), *device, "--cache_dir", str(bench.folder / cache)),
        *("--train_data_dir", str(bench.folder / "data"), "--output_dir", str(bench.folder / name)),
        *("--train_batch_size", str(batch), "--max_train_epochs", str(epochs)),
    ]


def check_runs(bench: Bench) -> None:
    """The same network, nothing lost to kill -9, one writer, caches made once."""
    from lorapipe_demo.concept import draw_concept
    from lorapipe_demo.scene import TRIGGER

    draw_concept(bench.folder / "data", TRIGGER, pictures=8 * bench.cards, repeats=1, seed=3)
    cards, longer = bench.cards, 8 if bench.small else 60
    kept_often = ["--state_interval", "0.2"]
    seldom = ["--state_interval", "3600"]
    runs = {
        "one": bench.start(words_of(bench, "one", 2 * cards, 5, "cache-one"), "one"),
        "two": bench.start(words_of(bench, "two", 2, 5, "cache-two"), "two", cards=cards),
    }
    if bench.small:
        bench.finish(*runs.values())
    wholes = ("whole",) if bench.small else ("whole", "whole again")
    for name in wholes:
        runs[name] = bench.start(words_of(bench, name, 2, longer, f"cache-{name}"), name, cards=cards)
    if bench.small:
        bench.finish(*runs.values())
    commands = {
        "kill-one": [*words_of(bench, "kill-one", 2, longer, "cache-k1"), *seldom],
        "kill-all": [*words_of(bench, "kill-all", 2, longer, "cache-k2"), *kept_often],
    }
    kills: list[tuple[str, Callable[[subprocess.Popen[str]], object]]] = [
        ("kill-one", lambda process: os.kill(processes_of(process.pid)[-1], signal.SIGKILL)),
        ("kill-all", kill_all),
    ]
    for name, kill in kills:
        kill_and_go_on(bench, name, commands[name], kill)
    bench.finish(*runs.values())
    compare(bench, "N cards are one with N x the batch", "one", "two", 20)
    one_writes(bench)
    # Sums on a card come in any order, so two runs lie apart that nobody has killed.
    floor = 0.0 if bench.small else compare(bench, "two whole runs", *wholes, longer * 4, bound=1.0)
    for name in commands:
        part = f"{name}: goes on to the same network"
        compare(bench, part, "whole", name, longer * 4, bound=max(1e-2, 3 * floor))


def kill_and_go_on(
    bench: Bench, name: str, command: list[str], kill: Callable[[subprocess.Popen[str]], object]
) -> None:
    """Kill in the middle of a run, look at what it told and left, and give the command again."""
    killed = bench.start(command, name, cards=bench.cards)
    metrics = bench.folder / name / "net.metrics.jsonl"
    wanted = 6 if bench.small else 30
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < wanted:
        if killed.poll() is not None or time.monotonic() > bench.until:
            kill_all(killed)
            bench.tell(name, False, why=last(bench, name))
            return
        time.sleep(0.005)
    at = metrics.read_bytes().count(b"\n")
    kill(killed)
    began = time.monotonic()
    bench.finish(killed)
    seconds = time.monotonic() - began
    lines = [line for line in bench.told(name) if "lora-train: " in line]
    state = (bench.folder / name / "net.state").exists()
    (status,) = bench.finish(bench.start(command, f"{name}-again", cards=bench.cards))
    went_on = [line for line in bench.told(f"{name}-again") if line.startswith("going on after step")]
    good = status == 0 and state and bool(went_on) and (name == "kill-all" or len(lines) == 1)
    bench.tell(
        name, good, at_step=at, ended_after_s=round(seconds, 1), lines=lines, state=state, went_on=went_on
    )


def losses_of(folder: Path) -> dict[int, float]:
    """The loss of each step of a run."""
    rows = [json.loads(line) for line in (folder / "net.metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss/current"] for row in rows}


def compare(bench: Bench, part: str, one: str, other: str, steps: int, *, bound: float = 1e-2) -> float:
    """How far two runs' losses and networks lie apart, which is at most ``bound`` of what was learned; returns that."""
    try:
        losses = [losses_of(bench.folder / name) for name in (one, other)]
        gap = apart(*(bench.folder / name / "net.safetensors" for name in (one, other)))
    except OSError:
        bench.tell(part, False, why=last(bench, other))
        return 0.0
    worst = max(abs(losses[0][step] / losses[1][step] - 1) for step in losses[0].keys() & losses[1].keys())
    whole = len(losses[0]) == len(losses[1]) == steps
    bench.tell(
        part,
        whole and worst < 0.1 * bound and gap < bound,
        steps=len(losses[1]),
        losses_apart=f"{worst:.1e}",
        networks_apart=f"{gap:.1e}",
        same_bits=gap == 0,
    )
    return gap


def one_writes(bench: Bench) -> None:
    """The first process alone writes, and no cache is made twice."""
    files = [
        sorted(
            path.name
            for path in (bench.folder / name).rglob("*")
            if path.is_file() and "tfevents" not in path.name
        )
        for name in ("one", "two")
    ]
    logs = len(list((bench.folder / "two").rglob("*tfevents*")))
    caches = [len(list((bench.folder / f"cache-{name}").rglob("*.safetensors"))) for name in ("one", "two")]
    paths = bench.said("two")
    once = len(paths) == len(set(paths)) and sum(line.startswith("base: ") for line in bench.told("two")) == 1
    good = files[0] == files[1] and logs == 1 and caches[0] == caches[1] > 0 and once
    bench.tell("one writes, caches once", good, files=len(files[1]), logs=logs, cached=caches, told_once=once)


# -------------------------------------------------------------------------------- sample


def check_sample(bench: Bench) -> None:
    """Every cell of a plan is drawn once, whatever the number of processes."""
    seeds = 4 if bench.small else 64
    words = ["-c", SAMPLE, "--base", "demo", "--prompt", "mirelune, 1girl", "--x", f"seed:1-{seeds}"]
    words += ["--y", "cfg:4,7", "--steps", "2" if bench.small else "20", "--json"]
    if bench.small:
        words += ["--device", "cpu"]
    started = [
        bench.start([*words, "--output-dir", str(bench.folder / name)], name, cards=cards)
        for name, cards in (("drawn-1", 1), ("drawn-N", bench.cards))
    ]
    statuses = bench.finish(*started)
    names = [
        sorted(path.name for path in (bench.folder / name).glob("*.png")) for name in ("drawn-1", "drawn-N")
    ]
    records = [json.loads(line)["path"] for line in bench.said("drawn-N")]
    good = statuses == [0, 0] and names[0] == names[1] and len(records) == len(set(records)) == 2 * seeds
    why = {} if good else {"why": last(bench, "drawn-N")}
    bench.tell("sample", good, pictures=len(names[1]), records=len(records), **why)


# -------------------------------------------------------------------------------- queue


def check_queue(bench: Bench) -> None:
    """Every run of a queue is trained once, and gives what it gives in one process; how long all take."""
    from lorapipe_demo.concept import draw_concept
    from lorapipe_demo.scene import TRIGGER

    draw_concept(bench.folder / "data", TRIGGER, pictures=8 * bench.cards, repeats=1, seed=3)
    seeds = range(1, 2 * bench.cards + 1)
    seconds = {}
    for name, cards in (("queue-1", 1), ("queue-N", bench.cards)):
        words = words_of(bench, name, 2, 2 if bench.small else 60, f"cache-{name}")
        words += ["--vary", f"seed={','.join(map(str, seeds))}"]
        began = time.monotonic()
        (status,) = bench.finish(bench.start(words, name, cards=cards))
        seconds[name] = round(time.monotonic() - began, 1)
        if status:
            bench.tell("queue", False, why=last(bench, name))
            return
    paths = bench.said("queue-N")
    same = sorted(Path(path).name for path in bench.said("queue-1")) == sorted(
        Path(path).name for path in paths
    )
    bench.tell(
        "queue: each run once", same and len(paths) == len(set(paths)), files=len(paths), seconds=seconds
    )
    finished = [
        sorted(path for path in map(Path, bench.said(name)) if not re.search(r"-\d{6}$", path.stem))
        for name in seconds
    ]
    for outputs in zip(*finished, strict=True):
        gap = apart(*outputs)
        bench.tell(f"queue: {outputs[0].stem} as in one process", gap < 1e-2, networks_apart=f"{gap:.1e}")


def apart(one: Path, other: Path) -> float:
    """How far two networks lie apart, as a share of what the first has learned."""
    from safetensors.torch import load_file

    networks = load_file(one), load_file(other)
    ups = [key for key in networks[0] if key.endswith("lora_up.weight")]  # which begin as zeros
    gap = sum(float((networks[0][key] - networks[1][key]).square().sum()) for key in ups) ** 0.5
    return gap / sum(float(networks[0][key].square().sum()) for key in ups) ** 0.5


# -------------------------------------------------------------------------------- the command


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each part: how it is, and its figures."""
    words = {True: "good", False: "NOT GOOD", None: "-"}
    width = max(len(row["part"]) for row in rows)
    return [
        f"{row['part']:{width}}  {words[row['good']]:8}  "
        + "  ".join(
            f"{key} {value}" for key, value in row.items() if key not in ("part", "good", "lines", "went_on")
        )
        for row in rows
    ]


def main(words: Sequence[str] | None = None) -> int:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cards", type=int, help="as many as there are")
    parser.add_argument("--minutes", type=float, default=3.5, help="what is not done by then is named")
    parser.add_argument("--small", action="store_true", help="two processes on the CPU, tiny models")
    parser.add_argument("--one_card", action="store_true", help="two processes on one card: sample, queue")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--workloads", nargs="+", default=["A", "C", "D"])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--out", type=Path, help="keeps what the commands told and the JSON lines")
    options = parser.parse_args(words)
    cards = options.cards or (2 if options.small or options.one_card else torch.cuda.device_count())
    if options.one_card and not {"sample", "queue"}.issuperset(options.only):
        parser.error("--one_card: only sample and queue; NCCL has no two processes on one card")
    if cards < 2:
        parser.error(f"{cards} cards here; --small tries all of it on the CPU")
    until = time.monotonic() + options.minutes * 60
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench(cards, small=options.small, until=until, folder=folder, one_card=options.one_card)
        names = ["small"] if options.small else options.workloads
        # The first two workloads, then what is to be right, then the rest: what time may not suffice for comes last.
        jobs: list[tuple[str, Callable[[], None]]] = [
            ("steps", lambda: measure_steps(bench, names[:2], options.steps)),
            ("checks", lambda: check_runs(bench)),
            ("sample", lambda: check_sample(bench)),
            ("queue", lambda: check_queue(bench)),
            ("steps", lambda: measure_steps(bench, names[2:], options.steps)),
        ]
        for part, job in jobs:
            if part not in options.only:
                continue
            try:
                job()
            except OutOfTime:
                bench.tell(f"{part}: the {options.minutes:g} minutes are over", None)
                break
            finally:
                bench.kill_rest()
        (folder / "cards.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bench.rows))
    print(*table(bench.rows), sep="\n", flush=True)
    return int(any(row["good"] is False for row in bench.rows))


if __name__ == "__main__":
    sys.exit(main())
