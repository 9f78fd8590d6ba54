"""The Triton kernels of the fused blocks run on the CPU by Triton's interpreter, beside torch's own operations.

A program by itself, since the interpreter must be chosen before the kernels are imported:

    TRITON_INTERPRET=1 python tests/engine/nn/kernels_interpreted.py

prints one JSON object: for each comparison, the largest relative difference of its results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import test_fused

from lorapipe_engine.nn.fused import kernels


def both_ways(work: Callable[[], list[Any]]) -> float:
    """The largest difference between what ``work`` gives with the kernels and without."""
    own, quick = kernels._quick, lambda x: x.dtype != torch.float64
    plain = work()
    try:
        kernels._quick = quick
        found = work()
    finally:
        kernels._quick = own
    return max(test_fused.apart(a.double(), b.double()) for a, b in zip(found, plain, strict=True))


def sliced(*shape: int) -> Any:
    """Random rows whose distance is larger than their width, as gradients of a concatenation have them."""
    wide = torch.randn(*shape[:-1], shape[-1] + 24)
    return wide[..., 8 : 8 + shape[-1]]


def unet(linear: bool, **more: Any) -> list[Any]:
    """The fused UNet with the kernels, the library's own without; small, the interpreter is slow."""
    fused = kernels._quick(torch.zeros(1))
    return test_fused.passes(linear, fused=fused, size=(6, 4), **more)


def layer_norm(also: bool, normed: bool, rows: int = 37, width: int = 40) -> list[Any]:
    torch.manual_seed(0)
    x, weight, bias, out = sliced(rows, width), torch.randn(width), torch.randn(width), sliced(rows, width)
    grad, more = sliced(rows, width), sliced(rows, width) if also else None
    again = sliced(rows, width) if normed else None
    mean, rstd = kernels.layer_norm(x, weight, bias, 1e-5, out)
    dx = kernels.layer_norm_backward(x, mean, rstd, weight, bias, grad, more, again)
    return [out, mean, rstd, dx, *([] if again is None else [again])]


def group_norm(shift: bool, silu: bool, also: bool, size: int = 150) -> list[Any]:
    torch.manual_seed(0)
    x, grad, width = sliced(2, size, 96) + 5, sliced(2, size, 96), 96
    weight, bias = torch.randn(width), torch.randn(width)
    moved, more = torch.randn(2, width) if shift else None, sliced(2, size, width) if also else None
    out, mean, rstd = kernels.group_norm(x, 8, weight, bias, 1e-5, moved, silu)
    dx = kernels.group_norm_backward(x, mean, rstd, weight, bias, moved, silu, grad, more)
    return [out, mean, rstd, dx]


def activation(kind: int, rows: int = 5, width: int = 1100) -> list[Any]:
    torch.manual_seed(0)
    inner = torch.randn(rows, width * (2 if kind == kernels.GEGLU else 1))
    out, again, dinner = sliced(rows, width), sliced(rows, width), torch.empty_like(inner)
    kernels.activate(kind, inner, out)
    kernels.activate_backward(kind, inner, sliced(rows, width), dinner, again)
    return [out, dinner, again]


def sums_and_copies() -> list[Any]:
    torch.manual_seed(0)
    x = kernels.add_bias(torch.randn(70, 96), torch.randn(96), sliced(70, 96))
    weight = torch.randn(70, 33, 3, 3).contiguous(memory_format=torch.channels_last)
    sources = [torch.randn(5, 40), torch.randn(70, 90)]
    targets = [torch.zeros(5, 64)[:, 8:48], torch.zeros(70, 90)]
    kernels.ManyCopies(sources, targets, [0.5, 2.0]).run()
    return [x, kernels.turned(weight), *targets]


COMPARED: dict[str, Callable[[], list[Any]]] = {
    "unet, linear projections, added conditions": lambda: unet(True, added=True),
    "unet, convolutions as projections, checkpointed": lambda: unet(False, checkpointed=True),
    "layer norm": lambda: layer_norm(also=False, normed=False),
    "layer norm, with more": lambda: layer_norm(also=True, normed=True),
    "group norm": lambda: group_norm(shift=False, silu=False, also=False),
    "group norm, with more": lambda: group_norm(shift=True, silu=True, also=True),
    "geglu": lambda: activation(kernels.GEGLU),
    "gelu": lambda: activation(kernels.GELU),
    "quick gelu": lambda: activation(kernels.QUICK_GELU),
    "sums and copies": sums_and_copies,
}

if __name__ == "__main__":
    print(json.dumps({name: both_ways(work) for name, work in COMPARED.items()}, indent=1))
