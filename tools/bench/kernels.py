"""What a step's time on a card goes into: its kernels by kind, beside what the arithmetic alone would take."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# In this order: the first that fits counts.
KINDS = {
    "attention": r"sdpa|flash|fmha|attention|^_few|^_fold",
    "the network's short products": r"^_(?:lift|factors|note)",
    "convolutions": r"conv|fprop|dgrad|wgrad|implicit|winograd|cudnn|xmma",
    "products": r"gemm|nvjet|cutlass|cublas|splitk|matmul|dot_kernel",
    "norms, activations (fused blocks)": r"^_(?:group|layer_norm|activate|add_bias|turn|copy_many)",
    "clip and optimizer": r"multi_tensor|adam|foreach|lpnorm|norm_kernel",
    "reductions": r"reduce|softmax|norm",
    "copies and layout": r"copy|memcpy|memset|cat|fill|transpose|nchw|nhwc",
    "elementwise": r"elementwise|vectorized|unrolled",
}


@dataclass(frozen=True)
class Share:
    """A kind of kernels: how many, and their time in ms."""

    kind: str
    count: int
    milliseconds: float


def shares(kernels: Iterable[tuple[str, int, float]]) -> list[Share]:
    """Kernels (name, count, milliseconds) by kind, the longest first."""
    by_kind: dict[str, tuple[int, float]] = {}
    for name, count, milliseconds in kernels:
        kind = kind_of(name)
        counted, spent = by_kind.get(kind, (0, 0.0))
        by_kind[kind] = (counted + count, spent + milliseconds)
    rows = [Share(kind, count, spent) for kind, (count, spent) in by_kind.items()]
    return sorted(rows, key=lambda row: -row.milliseconds)


def kind_of(name: str) -> str:
    """The kind of a kernel by its name."""
    return next((kind for kind, words in KINDS.items() if re.search(words, name, re.IGNORECASE)), "other")


def table(rows: Iterable[Share], floor: float, step: float) -> str:
    """The shares as lines. ``floor``: ms of the arithmetic alone, ``step``: ms of the captured step."""
    rows = list(rows)
    busy = sum(row.milliseconds for row in rows)
    lines = [f"{row.milliseconds:9.2f} ms {row.count:6} x  {row.kind}" for row in rows]
    lines.append(
        f"{busy:9.2f} ms in all kernels, one after the other; the captured step takes {step:.2f} ms, the arithmetic "
        f"alone {floor:.2f}"
    )
    return "\n".join(lines)
