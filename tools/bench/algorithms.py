"""Times every network algorithm on the workloads of train.py, and lycoris-lora on diffusers' modules beside it.

    python tools/bench/algorithms.py [A C] [--lycoris WHEEL_OR_FOLDER ...] [--minutes 8] [--out FILE.jsonl]
    python tools/bench/algorithms.py --small [--lycoris ...]        tiny models, on a CPU too: that it works at all
    python tools/bench/algorithms.py --demo FOLDER [--minutes 9.5]  the demo's figures for each algorithm

One base of random weights for each workload, in one process; every row puts its network in and takes it out again. The
first row is LoRA, the control, and it is measured once more after the others. A row: median ms of a step and how many
times the control's that is, MFU (LoRA's arithmetic over the step's time, so that it compares as the time does), peak
GiB reserved, MB of the file in half precision. LyCORIS comes after all of ours, in its default mode and then in
its bypass mode, with autocast, torch's AdamW and few steps. What the time does not suffice for is left out and said.
``--demo`` trains and judges in processes of its own, see ../demo_world/variants.py.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from algorithms_rows import BYPASS, DEFAULT, ENTRIES, Entry, modes_of
from torch import nn
from train import (
    FLOOR,
    WORKLOADS,
    Workload,
    count_kernels,
    make_batch,
    make_family,
    make_stepper,
    parts_of,
    time_steps,
)

from lorapipe_engine.nn.attach import Network, attach, detach
from lorapipe_engine.settings import NetworkSettings
from lorapipe_engine.train.data.microbatch import MicroBatch
from lorapipe_engine.train.families.base import Family
from lorapipe_engine.train.network.arguments import network_plan, read_network_args
from lorapipe_engine.train.network.choice import choose_layers
from lorapipe_engine.train.step.speed import speed_up

VARIANTS = Path(__file__).parent.parent / "demo_world" / "variants.py"
PEER_STEPS = 4


@dataclass(frozen=True)
class Row:
    """What was measured of an algorithm. ``by``: "ours", or LyCORIS and its mode; ``how``: "graph" for captured steps.
    ``times`` the control's step, ``peer`` (LyCORIS' rows): its step over ours. ``trained``: values. ``why``: what went
    wrong, where something did.
    """

    workload: str
    name: str
    by: str
    how: str = ""
    median_ms: float = 0.0
    times: float | None = None
    goal: float | None = None
    peer: float | None = None
    mfu: float = 0.0
    peak_gib: float = 0.0
    allocated_gib: float = 0.0
    file_mb: float = 0.0
    trained: int = 0
    seconds: float = 0.0
    why: str = ""


class Bench:
    """A workload's base, and rows measured on it."""

    def __init__(self, work: Workload, device: torch.device, steps: int, profiled: int = 0) -> None:
        self.work, self.device, self.steps, self.profiled = work, device, steps, profiled
        self.cuda = device.type == "cuda"
        torch.manual_seed(1)
        self.family: Family = make_family(work, device, torch.bfloat16 if self.cuda else torch.float32)
        self.family.vae.to(
            "cpu"
        )  # as in a run: pictures are encoded before, and so is text that is not trained
        if not work.text:
            for encoder in self.family.text.modules.values():
                encoder.to("cpu")
        self.batch: MicroBatch = make_batch(work, self.family)
        self.control: float | None = None
        self.ours: dict[str, float] = {}

    def measure(self, entry: Entry) -> Row:
        """Ours."""
        row = self._guarded(Row(self.work.name, entry.name, "ours", goal=entry.goal), self._ours, entry)
        if not row.why:
            self.control = self.control or row.median_ms
            self.ours.setdefault(entry.name, row.median_ms)
            row = replace(row, times=round(row.median_ms / self.control, 3))
        return row

    def measure_peer(self, entry: Entry, mode: str) -> Row:
        """LyCORIS, as it is without being asked for anything, or in its bypass mode."""
        row = self._guarded(Row(self.work.name, entry.name, f"lycoris {mode}"), self._peer, entry, mode)
        own = self.ours.get(entry.name)
        if row.why or own is None:
            return row
        return replace(row, peer=round(row.median_ms / own, 2))

    def _guarded(self, row: Row, measured: Callable[..., Row], *what: object) -> Row:
        """The row with its figures, or with the line of what went wrong; the base is as it was."""
        began = time.perf_counter()
        self._clear()
        try:
            row = measured(row, *what)
        except Exception as error:  # any library's: one algorithm that fails leaves the others their rows
            row = replace(row, why=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}")
        self._restore()
        return replace(row, seconds=round(time.perf_counter() - began, 1))

    def _ours(self, row: Row, entry: Entry) -> Row:
        network = make_network(entry, self.work, self.family)
        stepper = make_stepper(self.work, self.family, network)
        speed_up(stepper, capture=True, say=lambda text: print(text, file=sys.stderr))
        times, _, _ = time_steps(stepper, self.batch, self.steps)
        values = sum(
            tensor.numel()
            for adapter in network.adapters.values()
            for tensor in adapter.file_tensors().values()
        )
        row = replace(row, how="graph" if stepper.graphs and stepper.graphs.shapes else "plain")
        row = self._with_figures(row, times, network.count(), values)
        if self.profiled and self.cuda:
            floor = self.work.tflop * self.work.batch * 1e15 / FLOOR
            count_kernels(stepper, self.batch, self.profiled, floor, row.median_ms)
        return row

    def _peer(self, row: Row, entry: Entry, mode: str) -> Row:
        from algorithms_peer import time_lycoris

        times, trained, values = time_lycoris(
            entry, mode, self.work, self.family, self.batch, min(self.steps, PEER_STEPS)
        )
        return self._with_figures(replace(row, how="plain"), times, trained, values)

    def _with_figures(self, row: Row, times: Sequence[float], trained: int, values: int) -> Row:
        median = statistics.median(times)
        rate = self.work.tflop * self.work.batch * 1e12 / median
        return replace(
            row,
            median_ms=round(median * 1e3, 2),
            mfu=round(rate / FLOOR, 3),
            peak_gib=round(torch.cuda.max_memory_reserved() / 2**30, 2) if self.cuda else 0.0,
            allocated_gib=round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.cuda else 0.0,
            file_mb=round(values * 2 / 1e6, 2),
            trained=trained,
        )

    def _restore(self) -> None:
        """Take the network and the fused blocks out of the base."""
        roots = list(self.family.parts.values())
        detach(roots)
        for root in roots:
            for module in root.modules():
                for mark in ("forward", "pack", "fused"):
                    module.__dict__.pop(mark, None)
                if isinstance(module, nn.Linear | nn.Conv2d):
                    # Packed weights are views of a matrix that holds a network too; convolutions are channels-last.
                    module.weight.data = module.weight.data.contiguous()
                module.requires_grad_(False)
        self._clear()

    def _clear(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.synchronize()
            torch._C._cuda_clearCublasWorkspaces()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def make_network(entry: Entry, work: Workload, family: Family) -> Network:
    """The network that lora-train would make of an entry's words."""
    dim = entry.dim(work)
    settings = NetworkSettings(
        algorithm=entry.algorithm, network_dim=dim, network_alpha=dim / 2, network_args=entry.args(work)
    )
    args = read_network_args(settings)
    plan = network_plan(settings, args)
    choice = choose_layers(plan, args, family, parts_of(work, family))
    return attach(family.parts.values(), choice.targets, choice.plan)


# -------------------------------------------------------------------------------- all rows


LATE = "left out: out of time"


def rows_of(
    work: Workload, entries: Sequence[Entry], options: argparse.Namespace, device: torch.device
) -> Iterator[Row]:
    """A workload's rows; those that the time does not suffice for say so. The control comes first, and once more."""
    if time.monotonic() > options.end:
        yield Row(work.name, "all", "ours", why=LATE)
        return
    bench = Bench(work, device, options.steps, options.profile)
    control = ENTRIES[0]
    others = [entry for entry in entries if entry is not control]
    yield bench.measure(control)
    for entry in others:
        late = time.monotonic() > options.end
        yield Row(work.name, entry.name, "ours", why=LATE) if late else bench.measure(entry)
    if others and time.monotonic() <= options.end:
        yield replace(bench.measure(control), name=f"{control.name} again")
    for mode in options.modes if options.lycoris else ():
        for entry in entries:
            if mode not in modes_of(entry):
                continue
            if time.monotonic() > options.end:
                yield Row(work.name, entry.name, f"lycoris {mode}", why=LATE)
            else:
                yield bench.measure_peer(entry, mode)


def markdown(rows: Sequence[Row]) -> str:
    """A table for each workload, a line for each algorithm, with LyCORIS' columns where it was measured."""
    parts = []
    for workload in dict.fromkeys(row.workload for row in rows):
        lines = [
            f"{workload} | ms | times LoRA | goal | MFU | peak GiB | file MB | LyCORIS ms, GiB | times ours "
            "| its bypass ms, GiB | times ours",
            "--- | --- | --- | --- | --- | --- | --- | --- | --- | --- | ---",
        ]
        same = {(row.name, row.by): row for row in rows if row.workload == workload}
        for name in dict.fromkeys(row.name for row in rows if row.workload == workload):
            own = same.get((name, "ours"))
            cells = [name, *(_own_cells(own) if own else ["", "", "", "", "", ""])]
            for mode in (DEFAULT, BYPASS):
                cells += _peer_cells(same.get((name, f"lycoris {mode}")))
            lines.append(" | ".join(cells))
        parts.append("\n".join(f"| {line} |" for line in lines))
    return "\n\n".join(parts)


def _own_cells(row: Row) -> list[str]:
    if row.why:
        return [row.why, "", "", "", "", ""]
    note = "" if row.how == "graph" else ", not captured"
    return [
        f"{row.median_ms}{note}",
        f"{row.times}",
        "" if row.goal is None else f"{row.goal}",
        f"{row.mfu}",
        f"{row.peak_gib}",
        f"{row.file_mb}",
    ]


def _peer_cells(row: Row | None) -> list[str]:
    if row is None:
        return ["", ""]
    if row.why:
        return [row.why, ""]
    return [f"{row.median_ms}, {row.peak_gib}", "" if row.peer is None else f"{row.peer}"]


def demo(options: argparse.Namespace) -> int:
    """The demo's figures, by variants.py."""
    words = [
        sys.executable,
        str(VARIANTS),
        str(options.demo),
        "--group",
        "algorithms",
        "--minutes",
        str(options.minutes),
    ]
    words += ["--jobs", str(options.jobs)] if options.jobs else []
    words += ["--epochs", str(options.epochs)] if options.epochs else []
    words += ["--only", *options.only] if options.only else []
    return subprocess.call(words)


def read_options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", metavar="A-E", help="those of train.py [A C]")
    names = [entry.name for entry in ENTRIES]
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="of: " + "; ".join(names))
    parser.add_argument("--lycoris", nargs="*", default=[], type=Path, metavar="PATH", help=PATHS)
    parser.add_argument(
        "--steps", type=int, default=12, help=f"that are timed ({PEER_STEPS} at most of LyCORIS)"
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="no row begins after these")
    parser.add_argument(
        "--modes", nargs="+", choices=(DEFAULT, BYPASS), default=(DEFAULT, BYPASS), help="of LyCORIS"
    )
    parser.add_argument(
        "--profile", type=int, default=0, metavar="N", help="print the N longest kernels of each of ours"
    )
    parser.add_argument("--small", action="store_true", help="tiny models, for a CPU")
    parser.add_argument("--out", type=Path, help="write the rows there too, as JSON lines")
    parser.add_argument("--demo", type=Path, metavar="FOLDER", help="the demo's figures, and nothing else")
    parser.add_argument("--jobs", type=int, help="of --demo: runs at a time")
    parser.add_argument("--epochs", type=int, help="of --demo: instead of the recipe's")
    options = parser.parse_args(words)
    if not options.demo and (odd := sorted(set(options.only) - set(names))):
        parser.error(f"--only: '{odd[0]}' is none of: {'; '.join(names)}")
    return options


PATHS = "lycoris-lora and what it imports (einops, toml): wheels or folders"


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print each row as a JSON line as it comes, and the table at the end."""
    began = time.monotonic()
    options = read_options(words)
    if options.demo:
        return demo(options)
    sys.path[:0] = [str(path) for path in options.lycoris]
    options.end = began + options.minutes * 60
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    entries = [entry for entry in ENTRIES if not options.only or entry.name in options.only]
    rows: list[Row] = []
    for name in ["small"] if options.small else options.workloads or ["A", "C"]:
        for row in rows_of(WORKLOADS[name], entries, options, device):
            rows.append(row)
            line = json.dumps(asdict(row))
            print(line, flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(line + "\n")
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"\n{card}, torch {torch.__version__}, {time.monotonic() - began:.0f} s\n\n{markdown(rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
