"""How much of what a LoRA changes arrives in half precision: as three modules, packed as the engine has it, merged.

    python tools/bench/update_error.py [--width 1280] [--rank 32] [--rows 4096] [--dtype bf16] [--dora inputs] [--json]

A linear layer of random weights with a LoRA whose change of the weights is 1e-4 to 1e-1 of their norm. Everything is
compared with float64. `share`: the part of the exact change that is in the result (1: all of it; 0: it was rounded
away). `error`: how far the whole result lies from the exact one, relative; a result that is only rounded has the first
line's. The engine packs a layer in two ways: `lifted` adds the change to what the layer made, which is rounded before,
as three modules do; `joined`, for what reads a norm, rounds once.

`--dora`: the same of a LoRA under magnitudes by inputs or outputs, which differ from the norms by as much as the change
does from the weights: the layer's own forward, packed, and packed behind a norm (whose exact result is wanted there).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from lorapipe_engine.nn.adapters.lora import DressedLora, Lora
from lorapipe_engine.nn.base import NO_DROPOUT, Size, adapter_class
from lorapipe_engine.nn.factored import EPSILON
from lorapipe_engine.nn.fused import ops
from lorapipe_engine.nn.fused.packed import Packed, Packs

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CHANGES = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class Row:
    """Of one way and one size of the change, which is relative to the weights."""

    way: str
    change: float
    share: float
    error: float


def measure(width: int, rank: int, rows: int, dtype: torch.dtype) -> Iterator[Row]:
    """The rows of the table."""
    torch.manual_seed(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = nn.Linear(width, width, bias=False, device=device, dtype=dtype).requires_grad_(False)
    x = torch.randn(rows, width, device=device, dtype=dtype)
    plain = x.double() @ base.weight.double().mT
    yield Row("rounded once", 0.0, 1.0, apart(plain.to(dtype), plain))
    for change in CHANGES:
        layer = Lora(base, rank, float(rank))
        with torch.no_grad():
            layer.lora_up.normal_()
            layer.lora_up.mul_(change * base.weight.float().norm() / layer.delta().norm())
        by_way = results(layer, x, dtype)
        down, up = layer.lora_down.detach().double(), layer.lora_up.detach().double()
        wanted = x.double() @ down.mT @ up.mT
        for way, result in by_way.items():
            share = float(((result.double() - plain) * wanted).sum() / wanted.square().sum())
            yield Row(way, change, round(share, 3), apart(result, plain + wanted))


def results(layer: Lora, x: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    """What each way makes of x. The weights of ``layer`` are as before afterwards."""
    with torch.no_grad():
        down, up = layer.lora_down.to(dtype), layer.lora_up.to(dtype)
        modules = x @ layer.weight.mT + (x @ down.mT) @ up.mT
        merged = x @ (layer.weight.float() + layer.delta()).to(dtype).mT
        pack = Packed([layer])
        pack.downs[0].copy_(layer.lora_down)
        pack.ups[0].copy_(layer.lora_up * pack.scales[0])
        packed = ops.linear(x, pack)
        joined = torch.cat([x, x @ pack.down.mT], dim=1) @ pack.joined.mT
    return {"three modules": modules, "packed, lifted": packed, "packed, joined": joined, "merged": merged}


def measure_dora(width: int, rank: int, rows: int, dtype: torch.dtype, *, by_output: bool) -> Iterator[Row]:
    """The rows of the table under magnitudes."""
    torch.manual_seed(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = nn.Linear(width, width, bias=False, device=device, dtype=dtype).requires_grad_(False)
    given = torch.randn(rows, width, device=device, dtype=dtype)
    norm = nn.LayerNorm(width, device=device, dtype=dtype).requires_grad_(False)
    normed = norm.double()(given.double())
    norm.to(dtype)
    plain = given.double() @ base.weight.double().mT
    yield Row("rounded once", 0.0, 1.0, apart(plain.to(dtype), plain))
    for change in CHANGES:
        options = {"dora_wd": True, "wd_on_output": by_output}
        layer = adapter_class("lora").create(base, Size(rank, float(rank)), NO_DROPOUT, options)
        assert isinstance(layer, DressedLora)
        with torch.no_grad():
            layer.lora_up.normal_()
            layer.lora_up.mul_(change * base.weight.float().norm() / layer.inner_delta().norm())
            layer.magnitude.mul_(1 + change * torch.randn_like(layer.magnitude))
        moved = base.weight.double() + layer.lora_up.double() @ layer.lora_down.double()
        axis = 1 if by_output else 0
        ratio = layer.magnitude.double() / (moved.norm(dim=axis, keepdim=True) + EPSILON)
        change_of = (moved * ratio - base.weight.double()).detach()
        for way, result in dora_results(layer, given, norm).items():
            x = normed if way.startswith("norm") else given.double()
            before, wanted = x @ base.weight.double().mT, x @ change_of.mT
            share = float(((result.double() - before) * wanted).sum() / wanted.square().sum())
            yield Row(way, change, round(share, 3), apart(result, before + wanted))


def dora_results(layer: DressedLora, given: Tensor, norm: nn.LayerNorm) -> dict[str, Tensor]:
    """What each way makes of ``given``, and of its norm."""
    with torch.no_grad():
        own = layer(given)
        behind = layer(norm(given))
        packs = Packs([Packed([layer])])
        packs.refresh()
        packed = ops.linear(given, packs.packs[0])
        after = ops.norm_linear(given, norm, packs.packs[0])[1]
    return {"own": own, "packed": packed, "norm, own": behind, "norm, packed": after}


def apart(got: Tensor, wanted: Tensor) -> float:
    return float(((got.double() - wanted).norm() / wanted.norm()).detach())


def count(text: str) -> int:
    """A number of 1 or more, of an option."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"a whole number of 1 or more is needed, not '{text}'")
    return int(text)


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--width", type=count, default=1280)
    parser.add_argument("--rank", type=count, default=32)
    parser.add_argument("--rows", type=count, default=4096)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--dora", choices=("inputs", "outputs"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(words)
    sizes = (options.width, options.rank, options.rows, DTYPES[options.dtype])
    by_output = options.dora == "outputs"
    for row in measure_dora(*sizes, by_output=by_output) if options.dora else measure(*sizes):
        if options.json:
            print(json.dumps(asdict(row)))
        else:
            print(f"{row.way:16}  change {row.change:7.0e}  share {row.share:6.3f}  error {row.error:.2e}")


if __name__ == "__main__":
    main()
