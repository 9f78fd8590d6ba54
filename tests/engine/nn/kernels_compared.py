"""The Triton kernels of the fused blocks beside torch's own operations: on a card, or by Triton's interpreter.

A program by itself, since the interpreter must be chosen before the kernels are imported:

    python tests/engine/nn/kernels_compared.py                       # compiled, on the card
    TRITON_INTERPRET=1 python tests/engine/nn/kernels_compared.py    # on the CPU

prints one JSON object: for each comparison, the largest relative difference of its results. Names of
comparisons run these alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

import test_fused
from torch import nn

from lorapipe_engine.nn import kernels
from lorapipe_engine.nn.base import NO_DROPOUT, Size, adapter_class
from lorapipe_engine.nn.fused import unet as fused_unet
from lorapipe_engine.nn.fused.packed import Packed, Packs
from lorapipe_engine.nn.kernels.blocks import Blocks
from lorapipe_engine.nn.kernels.gradients import FactorGradients
from lorapipe_engine.nn.magnitudes import squares_of_sums


def both_ways(work: Callable[[], list[Any]]) -> float:
    """The largest difference between what ``work`` gives with the kernels and without."""
    found, plain = [], []
    own = kernels.runs_triton, kernels.runs_products
    try:
        for results, runs in ((plain, lambda _: False), (found, lambda x: x.dtype != torch.float64)):
            kernels.runs_triton = kernels.runs_products = runs
            results += work()
    finally:
        kernels.runs_triton, kernels.runs_products = own
    return max(test_fused.apart(a.double(), b.double()) for a, b in zip(found, plain, strict=True))


def sliced(*shape: int) -> Any:
    """Random rows whose distance is larger than their width, as gradients of a concatenation have them."""
    wide = torch.randn(*shape[:-1], shape[-1] + 24)
    return wide[..., 8 : 8 + shape[-1]]


def unet(linear: bool, **more: Any) -> list[Any]:
    """The fused UNet with the kernels, the library's own without; small, the interpreter is slow."""
    fused = kernels.runs_triton(torch.zeros(1))
    return test_fused.passes(linear, fused=fused, size=(6, 4), device=str(torch.get_default_device()), **more)


def layer_norm(also: bool, rows: int = 37, width: int = 40) -> list[Any]:
    torch.manual_seed(0)
    x, weight, bias, out = sliced(rows, width), torch.randn(width), torch.randn(width), sliced(rows, width)
    grad, more = sliced(rows, width), sliced(rows, width) if also else None
    mean, rstd = kernels.layer_norm(x, weight, bias, 1e-5, out)
    dx = kernels.layer_norm_backward(x, mean, rstd, weight, grad, more)
    sums, alone = torch.randn(2, width), torch.randn(width)
    again = kernels.layer_norm_backward(x, mean, rstd, weight, grad, more, (sums[0], sums[1]))
    kernels.layer_norm_backward(x, mean, rstd, weight, grad, more, (alone, None))
    each = sliced(3, rows, width)
    kernels.layer_norm_each(x, weight, bias, 1e-5, torch.randn(3, width), each)
    return [out, mean, rstd, dx, again, sums, alone, each]


def group_norm(shift: bool, silu: bool, also: bool, size: int = 150) -> list[Any]:
    torch.manual_seed(0)
    x, grad, width = sliced(2, size, 96) + 5, sliced(2, size, 96), 96
    weight, bias = torch.randn(width), torch.randn(width)
    moved, more = sliced(2, width) if shift else None, sliced(2, size, width) if also else None
    out, mean, rstd = kernels.group_norm(x, 8, weight, bias, 1e-5, moved, silu)
    dx = kernels.group_norm_backward(x, mean, rstd, weight, bias, moved, silu, grad, more)
    sums = torch.randn(2, width)
    into = sums[0], sums[1]
    again = kernels.group_norm_backward(x, mean, rstd, weight, bias, moved, silu, grad, more, into)
    return [out, mean, rstd, dx, again, sums]


def activation(kind: int, rows: int = 5, width: int = 1100) -> list[Any]:
    torch.manual_seed(0)
    inner = torch.randn(rows, width * (2 if kind == kernels.GEGLU else 1))
    out = sliced(rows, width)
    kernels.activate(kind, inner, out)
    scaled = sliced(rows, width)
    kernels.activate(kind, inner, scaled, torch.randn(width))
    kept, grad = inner.clone(), sliced(rows, width)
    alone = kernels.activate_backward(kind, inner, grad, apart=True)[0]
    assert torch.equal(inner, kept)
    ratio, sums = torch.randn(width), torch.randn(width)
    by_ratio = kernels.activate_scaled_backward(kind, inner.clone(), grad.clone(), ratio, sums)
    return [out, scaled, alone, *by_ratio, sums, *kernels.activate_backward(kind, inner, grad)]


def without_factors(rows: int = 70, width: int = 150) -> list[Any]:
    """A ratio of outputs and no ranks."""
    torch.manual_seed(0)
    both, factor = sliced(rows, width), torch.randn(width, 0).mT
    return [
        kernels.lift(both, factor, sliced(rows, width), ratio=torch.randn(width), bias=torch.randn(width))[0]
    ]


def lift(residual: bool, rows: int = 70, width: int = 150, rank: int = 40) -> list[Any]:
    torch.manual_seed(0)
    wide = torch.randn(rank + 8, width + 24)
    factor = wide[4 : 4 + rank, 8 : 8 + width]
    both, more = sliced(rows, width + rank), sliced(rows, width) if residual else None
    turned = torch.randn(width, rank).mT
    return [*kernels.lift(both.clone(), factor, more), *kernels.lift(both.clone(), turned, more)]


def lift_scaled(more: bool, rows: int = 70, width: int = 150, rank: int = 40) -> list[Any]:
    torch.manual_seed(0)
    both, factor = sliced(rows, width + rank), torch.randn(width, rank).mT
    residual, other = sliced(rows, width), sliced(rows, width)
    if more:
        return [
            *kernels.lift(both.clone(), factor, residual, more=other),
            *kernels.lift(both.clone(), factor, residual, bias=torch.randn(width)),
            kernels.lift(both.clone(), factor, more=other)[0],
            *kernels.lift(both, factor, residual, more=sliced(rows, width + rank)),
        ]
    ratio, bias = torch.randn(width), torch.randn(width)
    kept = both.clone()
    found = [
        *kernels.lift(both, factor, residual, ratio=ratio, bias=bias),
        kernels.lift(both, factor, ratio=ratio)[0],
        *kernels.lift(both, factor, ratio=ratio, sums=(other, into := torch.randn(width))),
    ]
    return [*found, into, both - kept + 1]


def scale_columns(rows: int = 300, width: int = 150) -> list[Any]:
    torch.manual_seed(0)
    into = torch.randn(width)
    x, other = sliced(rows, width), sliced(rows, width)
    return [kernels.scale_columns(x, torch.randn(width), other, into), into]


def sum_scaled(rows: int = 100, width: int = 150) -> list[Any]:
    torch.manual_seed(0)
    into, other = torch.randn(3, width), sliced(rows, width)
    parts = torch.stack([sliced(rows, width) for _ in range(3)])
    return [kernels.sum_scaled(parts, torch.randn(3, width), other, into), into]


def factor_gradients(apart: bool, ranks: tuple[int, int] = (5, 7), rows: int = 600) -> list[Any]:
    """Two packs, one of two layers and with a padded rank."""
    torch.manual_seed(0)
    downs, ups = (
        [torch.randn(rank, 144) for rank in ranks],
        [torch.randn(160, ranks[0]), torch.randn(48, ranks[1])],
    )
    other = FactorGradients([torch.randn(16, 80)], [torch.randn(32, 16)], [1.5])
    packs = [(FactorGradients(downs, ups, [0.5, 2.0]), apart), (other, False)]
    dys = [sliced(rows, 160), sliced(rows, 48)] if apart else [sliced(rows, 208)]
    reads = [
        (sliced(rows, 144), torch.randn(rows, 32), dys, sliced(rows, 32)),
        (torch.randn(77, 80), torch.randn(77, 16), [torch.randn(77, 32)], torch.randn(77, 16)),
    ]
    if kernels.runs_products(downs[0]):
        kernels.factor_batch(packs).add(reads)
    else:
        for (pack, _), row in zip(packs, reads, strict=True):
            pack.add(*row)
    return [*downs, *ups, *other.downs, *other.ups]


def few_keys(rows: int = 150, count: int = 21, width: int = 24, heads: int = 2) -> list[Any]:
    """The kernels, and torch's own attention."""
    torch.manual_seed(0)
    query, keys = sliced(3 * rows, heads * width), sliced(3 * count, 2 * heads * width)
    grad = sliced(3 * rows, heads * width)
    if kernels.runs_triton(query):
        assert kernels.few_keys(query, count, heads)
        return [
            kernels.attend_few(query, keys, 3, heads),
            *kernels.attend_few_backward(query, keys, grad, 3, heads),
        ]
    query, keys = query.clone().requires_grad_(), keys.clone().requires_grad_()
    out = fused_unet.attend(query, *keys.chunk(2, dim=1), 3, heads)
    out.backward(grad)
    return [out, query.grad, keys.grad]


def sums_and_copies() -> list[Any]:
    torch.manual_seed(0)
    x = kernels.add_bias(torch.randn(70, 96), torch.randn(96), sliced(70, 96))
    both = kernels.add_bias(torch.randn(70, 96), torch.randn(96), sliced(70, 96), sliced(70, 96))
    weight = torch.randn(70, 33, 3, 3).contiguous(memory_format=torch.channels_last)
    sources = [torch.randn(5, 40), torch.randn(70, 90)]
    targets = [torch.zeros(5, 64)[:, 8:48], torch.zeros(70, 90)]
    kernels.many_copies(sources, targets, [0.5, 2.0]).run()
    sums = torch.randn(90)
    kernels.sum_rows(sliced(300, 90), sums)
    return [x, both, kernels.turned(weight), sums, *targets]


def rotations(blocks: Blocks, rows: int = 150, *, by_channels: bool = False) -> list[Any]:
    """Turns of one step, as the first of several, and as the last."""
    torch.manual_seed(0)
    width, bias = blocks.count * blocks.size, torch.randn(blocks.count * blocks.size)
    turns, into = (torch.randn(blocks.count, blocks.size, blocks.size) for _ in range(2))
    x, change, grad, also = (sliced(rows, width) for _ in range(4))
    if by_channels:  # all but one, which the kernel has to lay so by itself
        x, change, also = (kernels.lay(part, by_channels=True) for part in (x, change, also))
    alone = kernels.rotate(x, None, None, turns, blocks, whole=True)
    first = kernels.rotate(x, bias, None, turns, blocks, whole=False)
    last = kernels.rotate(x, bias, change, turns, blocks, whole=True)
    back = kernels.rotate_back(x, bias, change, grad, None, turns, blocks, into, whole=False)
    whole = kernels.rotate_back(x, bias, None, grad, also, turns, blocks, into, whole=True)
    rest = [] if not by_channels else [kernels.lay(last, by_channels=False)]
    return [alone, first, last, back, whole, into, *rest]


def changed_squares(dtype: torch.dtype, shape: tuple[int, int], rank: int, aligned: bool) -> list[Any]:
    """By inputs and by outputs, of the kernel and of torch in float32, beside float64; the weights' rows are longer
    than they are wide, by other numbers for each."""
    torch.manual_seed(0)
    out, width = shape
    starts = (0, 8, 16) if aligned else (1, 8, 3)
    wide = [torch.randn(out, width + 24 + start).to(dtype) for start in starts]
    weights = [whole[:, start : start + width] for whole, start in zip(wide, starts, strict=True)]
    up, down = torch.randn(3, out, rank) * 0.5, torch.randn(3, width, rank).mT * 0.5
    found = []
    for by_output in (False, True):
        axis = 2 if by_output else 1
        exact = (torch.stack(weights).double() + up.double() @ down.double()).square().sum(dim=axis)
        if kernels.runs_triton(up):
            assert kernels.can_square(weights, up)
            squares = torch.stack(weights).float().square().sum(dim=axis)
            places = kernels.changed_weights(weights, by_output=by_output)
            found += [kernels.squares_of_changed(places, up, down)]
            found += [squares_of_sums(weights, squares, up, down, by_output=by_output)]
        else:
            found += [exact, exact]
    return found


def ratios(by_output: bool, convolution: bool) -> list[Any]:
    """Of layers in one pack, before and after their weights have moved and changed."""
    torch.manual_seed(0)
    options = {"dora_wd": True, "wd_on_output": by_output}
    bases = [nn.Conv2d(40, 48, 1) if convolution else nn.Linear(40, 48) for _ in range(3)]
    adapters = [adapter_class("lora").create(base, Size(5, 3.0), NO_DROPOUT, options) for base in bases]
    for adapter in adapters:
        for role in adapter.roles:
            own = getattr(adapter, role)
            own.data.add_(torch.randn_like(own) * 0.3)
            own.grad = torch.zeros_like(own)
    packs = Packs([Packed(adapters)])
    found = []
    for base in [None, *bases]:
        if base is not None:
            base.weight.data = base.weight.data * 2
        packs.refresh()
        found.append(packs.packs[0].ratio.clone())
    return found


def mend_bf16() -> None:
    """Triton's interpreter keeps bf16 as bits. It multiplies these, and cuts numbers off where a card rounds them."""
    from triton.language import bfloat16, float32
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot, cut = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def create_dot(self: Any, a: Any, b: Any, d: Any, *more: Any) -> Any:
        wide = [cut(self, x, float32) if x.dtype == bfloat16 else x for x in (a, b)]
        return dot(self, *wide, d, *more)

    def create_fp_trunc(self: Any, x: Any, kind: Any) -> Any:
        if (x.dtype.scalar, kind.scalar) != (float32, bfloat16):
            return cut(self, x, kind)
        values = torch.from_numpy(x.data.copy()).bfloat16().view(torch.uint16)
        return TensorHandle(values.numpy(), bfloat16)

    InterpreterBuilder.create_dot, InterpreterBuilder.create_fp_trunc = create_dot, create_fp_trunc


COMPARED: dict[str, Callable[[], list[Any]]] = {
    "unet, linear projections, added conditions": lambda: unet(True, added=True),
    "unet, convolutions as projections, checkpointed": lambda: unet(False, checkpointed=True),
    "layer norm": lambda: layer_norm(also=False),
    "layer norm, with more": lambda: layer_norm(also=True, rows=300, width=150),
    "group norm": lambda: group_norm(shift=False, silu=False, also=False),
    "group norm, with more": lambda: group_norm(shift=True, silu=True, also=True),
    "geglu": lambda: activation(kernels.GEGLU),
    "gelu": lambda: activation(kernels.GELU),
    "quick gelu": lambda: activation(kernels.QUICK_GELU),
    "sums and copies": sums_and_copies,
    "lift": lambda: lift(residual=False),
    "lift onto a residual, wide": lambda: lift(residual=True, rows=2100, rank=33),
    "lift, with more": lambda: lift_scaled(more=True),
    "lift, scaled": lambda: lift_scaled(more=False),
    "lift, without factors": without_factors,
    "scaled columns": scale_columns,
    "sums of scaled columns": sum_scaled,
    "gradients of factors": lambda: factor_gradients(apart=False),
    "gradients of factors, in units, apart": lambda: factor_gradients(apart=True, ranks=(16, 16)),
    "turns of small blocks": lambda: rotations(Blocks(15, 10), rows=2100),
    "turns of large blocks": lambda: rotations(Blocks(2, 70), rows=40),
    "turns of channels that lie apart": lambda: rotations(Blocks(2, 5, 4, 4)),
    "turns of rows laid by channels": lambda: rotations(Blocks(2, 5, 4, 4), by_channels=True),
    **{
        f"changed squares, {dtype}, rank {rank}": partial(changed_squares, dtype, shape, rank, aligned)
        for dtype in (torch.bfloat16, torch.float16)
        for shape, rank, aligned in (((37, 150), 1, True), ((600, 70), 5, False), ((130, 70), 64, True))
    },
    "changed squares, a large rank": lambda: changed_squares(torch.bfloat16, (70, 33), 100, aligned=False),
    "ratios by inputs": lambda: ratios(by_output=False, convolution=False),
    "ratios by outputs, convolutions": lambda: ratios(by_output=True, convolution=True),
    "few keys": few_keys,
    "few keys, many rows": lambda: few_keys(rows=1100, count=77, width=40, heads=1),
}

if __name__ == "__main__":
    if not os.environ.get("TRITON_INTERPRET"):
        torch.set_default_device("cuda")
        # The card's matrix units would drop digits of what the kernels are compared with.
        torch.backends.cudnn.allow_tf32 = False
    else:
        mend_bf16()
    chosen = {name: COMPARED[name] for name in sys.argv[1:] or COMPARED}
    print(json.dumps({name: both_ways(work) for name, work in chosen.items()}, indent=1))
