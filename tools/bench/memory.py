"""Trains workloads within the memory of small cards, and prints what was predicted beside what was measured.

    python tools/bench/memory.py [8 12 24] [--steps 6]

A card of N GiB is this one with ``set_per_process_memory_fraction`` at N - 0.8 GiB. Without cards the benchmark's own
workloads A to E run with all of the memory. ``--predict`` needs no card. A row tells predicted GiB, measured GiB (what
was reserved), or that memory ran out.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch
from train import WORKLOADS, Workload, make_family, measure

from lorapipe_engine.nn.attach import NetworkPlan
from lorapipe_engine.train.memory.fit import shapes_of
from lorapipe_engine.train.memory.model import GIB, Load, predict
from lorapipe_engine.train.memory.network import rows_of
from lorapipe_engine.train.memory.preset import KEPT
from lorapipe_engine.train.network.targets import targets_of

_A, _C = WORKLOADS["A"], WORKLOADS["C"]
CARDS = {
    8: (
        replace(_A, name="SD1.5 512 px batch 4 + text", checkpoint=True),
        replace(_A, name="SD1.5 768 px batch 1 + text", size=768, batch=1, checkpoint=True),
        replace(_C, name="SDXL 1024 px batch 1 dim 16", batch=1, rank=16, checkpoint=True),
    ),
    12: (
        replace(_A, name="SD1.5 768 px batch 3 + text", size=768, batch=3, checkpoint=True),
        replace(_C, name="SDXL 1024 px batch 4 dim 32", checkpoint=True),
    ),
    24: (replace(_C, name="SDXL 1024 px batch 2, no checkpointing", batch=2),),
}


def predicted(work: Workload) -> float:
    """GiB of a workload."""
    with torch.device("meta"):
        family = make_family(work, torch.device("meta"), torch.bfloat16)
    parts = ["unet", *(["te1"] if work.text else [])]
    unet, shapes = shapes_of(family)
    targets = [target for target in targets_of(family, conv=False) if target.part in parts]
    load = Load(
        work.size,
        work.size,
        work.batch,
        rows_of(family, targets, NetworkPlan(rank=work.rank, alpha=work.rank)),
        checkpointing=work.checkpoint,
        tokens=77 * work.chunks if work.text else 0,
        context=77 * work.chunks,
        text_there=work.text,
    )
    return predict(unet, {part: shapes[part] for part in parts}, load).gib


def measured(work: Workload, steps: int) -> str:
    """GiB of a workload on this card, in words."""
    try:
        row, _ = measure(work, capture=True, steps=steps, device=torch.device("cuda"))
        return f"{row.peak_gib:6.2f} GiB, {row.median_ms} ms"
    except torch.OutOfMemoryError as error:
        return f"ran out ({str(error).splitlines()[0][:80]})"
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def main(words: Sequence[str] | None = None) -> int:
    """Print a row for each workload."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cards", nargs="*", type=int, choices=[*CARDS, []], metavar="GIB")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--predict", action="store_true", help="measure nothing")
    options = parser.parse_args(words)
    rows = [(card, work) for card in options.cards for work in CARDS[card]]
    for card, work in rows or [(0, WORKLOADS[name]) for name in "ABCDE"]:
        line = f"{card or 'all':>4} {work.name:40} predicted {predicted(work):6.2f} GiB"
        if not options.predict:
            total = torch.cuda.mem_get_info()[1] / GIB
            torch.cuda.set_per_process_memory_fraction(min(1.0, (card - KEPT) / total) if card else 1.0)
            line += f"  measured {measured(work, options.steps)}"
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
