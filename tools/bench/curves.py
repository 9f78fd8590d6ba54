"""Trains SD 1.5 of random weights in three ways from one seed and draws the losses.

    python tools/bench/curves.py OUT.png [--steps 300] [--workload A] [--json OUT.json]

The ways: captured, not captured, with the libraries' own blocks. Every step has noise and timesteps of its own,
the same in all three runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch
from train import WORKLOADS, measure

from lorapipe_engine.pictures.charts import Line, write_chart

RUNS = {
    "captured": {"capture": True, "fused": True},
    "not captured": {"capture": False, "fused": True},
    "the libraries' blocks": {"capture": False, "fused": False},
}


def main(words: Sequence[str] | None = None) -> int:
    """Draw the curves and print how far they lie apart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workload", default="A", choices=WORKLOADS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    by_name: dict[str, list[float]] = {}
    for name, chosen in RUNS.items():
        row, losses = measure(WORKLOADS[options.workload], steps=options.steps - 6, device=device, **chosen)
        by_name[name] = losses
        print(
            f"{name:24} {row.median_ms} ms, mean loss {mean(losses):.6f}, last {losses[-1]:.6f}", flush=True
        )
        gc.collect()
        torch.cuda.empty_cache()
    first = by_name["captured"]
    for name, losses in by_name.items():
        apart = [abs(one - two) / two for one, two in zip(losses, first, strict=True)]
        print(f"{name:24} against captured: {mean(apart):.2e} apart on average, at most {max(apart):.2e}")
    write_chart(options.out, [Line(name, losses) for name, losses in by_name.items()], "loss", force=True)
    if options.json:
        options.json.write_text(json.dumps(by_name) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
