"""The kernels with products in them compile for the cards that users have, and fit into a multiprocessor's own memory.

Compiling needs no card. A kernel that takes more than there is stops the run at its first step. What a kernel takes is
known before its machine code is made, the longest part; that is made of each kernel's smallest form.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")
triton = pytest.importorskip("triton", reason="Triton is for Linux")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.backends.nvidia.compiler import CUDABackend  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from lorapipe_engine.nn import kernels  # noqa: E402
from lorapipe_engine.nn.kernels import (  # noqa: E402
    triton_blocks,
    triton_dots,
    triton_few_keys,
    triton_magnitudes,
)
from lorapipe_engine.nn.kernels.blocks import TILE, Blocks  # noqa: E402

pytestmark = pytest.mark.torch

# Compute capability -> bytes that one block may take (CUDA C++ programming guide, technical specifications).
CARDS = {75: 64 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 120: 99 * 1024}
FLOATS = ("part", "scales", "like_target", "turns", "into", "up", "down", "sums")
WHOLES = ("jobs", "slots", "table")
NUMBERS = ("M", "N", "C", "R", "rows_each", "each", "total")


class RoomIsKnown(Exception):
    """Ends a compilation: ``args`` are the bytes."""


def room_taken(
    kernel: Any, card: int, constants: dict[str, Any], warps: int = 4, stages: int = 3, *, whole: bool = False
) -> int:
    """Bytes of the kernel, in bf16 where the card has it. Numbers of rows and of channels are multiples of 16.

    ``whole``: compile it to machine code.
    """
    half = "*bf16" if card >= 80 else "*fp16"

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name == "scale":
            return "fp32"
        if name in NUMBERS or name.startswith("stride_"):
            return "i32"
        return "*fp32" if name in FLOATS else "*i64" if name in WHOLES else half

    names = kernel.arg_names
    signature = {name: kind(name) for name in names}
    even = [
        n
        for n, k in signature.items()
        if k.startswith("*") or n.startswith("stride_") or n in ("N", "C", "R")
    ]
    even = [name for name in even if name not in constants]
    hints = {(names.index(name),): [["tt.divisibility", 16]] for name in even}
    source = ASTSource(kernel, signature, {(names.index(n),): v for n, v in constants.items()}, hints)
    options = {"num_warps": warps, "num_stages": stages}

    def end(_backend: object, _source: object, metadata: dict[str, Any], *_more: object) -> None:
        raise RoomIsKnown(metadata["shared"])

    with pytest.MonkeyPatch.context() as patch:
        if not whole:
            patch.setattr(CUDABackend, "make_ptx", end)
            patch.setenv("DISABLE_LLVM_OPT", "1")
        try:
            compiled = triton.compile(source, target=GPUTarget("cuda", card, 32), options=options)
        except RoomIsKnown as known:
            return int(known.args[0])
    return int(compiled.metadata.shared)


def small(card: int) -> bool:
    return CARDS[card] < kernels.SMALL


@pytest.mark.parametrize("card", CARDS)
def test_short_products_fit(card: int) -> None:
    for rank in (16, kernels.most_ranks(CARDS[card])):
        constants = {"RESIDUAL": True, "ROWS": 64, "COLUMNS": 128, "RANK": rank}
        assert room_taken(triton_dots._lift, card, constants, whole=rank == 16) <= CARDS[card]
    for rank in (32, kernels.MOST_EACH):
        constants = {"UNIT": 16, "RANK_UNIT": 16, "FIELDS": triton_dots.FIELDS, "RANK": rank}
        constants |= {"ROWS": triton_dots.ROWS, "COLUMNS": triton_dots.COLUMNS}
        assert room_taken(triton_dots._factors, card, constants, whole=rank == 32) <= CARDS[card]


@pytest.mark.parametrize(
    ("card", "blocks"),
    [
        (75, Blocks(40, 8)),
        (75, Blocks(4, 5, 8, 8)),
        (90, Blocks(40, 8)),
        (90, Blocks(2, 5, 16, 4)),
        (90, Blocks(2, kernels.most_channels(CARDS[90]))),
    ],
)
@pytest.mark.parametrize("by_channels", [False, True])
def test_turns_of_blocks_fit(card: int, blocks: Blocks, by_channels: bool) -> None:
    _, known = triton_blocks.tiles(blocks, by_channels)
    warps, stages = known.pop("num_warps"), known.pop("num_stages")
    constants = {**known, "BIAS": True, "CHANGE": True, "WHOLE": False, "BY_CHANNELS": by_channels}
    if not by_channels and known["SIDE"] <= TILE:
        constants["ROWS"] = 128  # of many rows
    smallest = blocks == Blocks(40, 8)
    assert room_taken(triton_blocks._rotate, card, constants, warps, stages, whole=smallest) <= CARDS[card]
    constants = {**constants, "ROWS": known["ROWS"], "ALSO": True, "WHOLE": True}
    room = room_taken(triton_blocks._rotate_back, card, constants, warps, stages, whole=smallest)
    assert room <= CARDS[card]


@pytest.mark.parametrize("card", [card for card in CARDS if not small(card)])
@pytest.mark.parametrize("by_output", [False, True])
def test_squares_of_changed_weights_fit(card: int, by_output: bool) -> None:
    for rank in (16, 64, kernels.MOST_EACH):
        constants = {"UNIT": 8, "BY_OUTPUT": by_output, "stride_up_rank": 1, "stride_down_column": 1}
        constants |= triton_magnitudes.tiles(rank)
        stages = kernels.stages_for(CARDS[card])
        room = room_taken(triton_magnitudes._squares, card, constants, stages=stages, whole=rank == 16)
        assert room <= CARDS[card]


@pytest.mark.parametrize("card", [card for card in CARDS if not small(card)])
@pytest.mark.parametrize("width", [40, 64, 80, triton_few_keys.MOST_WIDTH])
def test_attention_on_few_keys_fits(card: int, width: int) -> None:
    first, second = triton_few_keys._parts(77)
    wide = triton_few_keys._up(width)
    constants = {"H": 8, "D": width, "FIRST": first, "SECOND": second, "WIDE": wide}
    rows, warps = triton_few_keys.tiles(first, wide)
    stages = kernels.stages_for(CARDS[card])
    whole, forward, backward = width == 40, {**constants, "ROWS": 64}, {**constants, "ROWS": rows}
    assert room_taken(triton_few_keys._few_forward, card, forward, whole=whole) <= CARDS[card]
    room = room_taken(triton_few_keys._few_backward, card, backward, warps, stages, whole=whole)
    assert room <= CARDS[card]
