"""Algorithms whose change equals a LoRA's are trained in the products of fused blocks: same results, same gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from lorapipe_engine.nn.attach import Kind, Network, NetworkPlan, Target, attach  # noqa: E402
from lorapipe_engine.nn.base import Dropouts  # noqa: E402
from lorapipe_engine.nn.fused.forms import Form  # noqa: E402
from lorapipe_engine.nn.fused.unet import fuse  # noqa: E402

pytestmark = pytest.mark.torch

WIDE, NARROW = 48, 32


def make_network(
    root: nn.Module, algorithm: str, options: Mapping[str, Any], dropouts: Dropouts, rank: int = 2
) -> Network:
    targets = [
        Target("unet", f"m_{name}", module)
        for name, module in root.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    plan = NetworkPlan(rank=rank, alpha=3, dropouts=dropouts, kind=Kind(algorithm, options))
    network = attach([root], targets, plan)
    with torch.no_grad():
        for adapter in network.adapters.values():
            for parameter in adapter.parameters():
                if parameter.requires_grad:
                    nn.init.normal_(parameter, std=0.3)
    network.train()
    return network


def make_root() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(WIDE, NARROW), nn.Linear(NARROW, WIDE, bias=False), nn.Linear(WIDE, NARROW)
    )


def run(
    algorithm: str, options: Mapping[str, Any], *, fused: bool, times: int, dropouts: Dropouts, rank: int = 2
) -> tuple[Any, Any, int]:
    """The output, the gradients of the network, and how many layers are packed by a form."""
    torch.manual_seed(4)
    root = make_root()
    network = make_network(root, algorithm, options, dropouts, rank)
    packs = fuse(root) if fused else None
    if packs is not None:
        packs.refresh()
    torch.manual_seed(5)
    for x in [torch.randn(2, 7, WIDE, requires_grad=True) for _ in range(times)]:  # before DyLoRA draws
        out = root(x)
        out.square().mean().backward()
        if packs is not None:
            packs.finish()
    forms = [row for pack in packs.packs for row in pack.layers if isinstance(row, Form)] if packs else []
    return out.detach(), network.groups["unet"].grad.clone(), len(forms)


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lokr": ("lokr", {"factor": 4}),
    "lokr of two pairs": ("lokr", {"factor": 8, "decompose_both": True}),
    "lokr, learned factor": ("lokr", {"factor": 4, "use_scalar": True}),
    "loha": ("loha", {}),
    "loha, learned factor": ("loha", {"use_scalar": True}),
    "dylora of one block": ("dylora", {"unit": 2}),
    "lora_fa": ("lora_fa", {}),
    "lora, learned factor": ("lora", {"use_scalar": True}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_form_is_the_algorithm(name: str) -> None:
    algorithm, options = KINDS[name]
    own = run(algorithm, options, fused=False, times=2, dropouts=Dropouts())
    fused = run(algorithm, options, fused=True, times=2, dropouts=Dropouts())
    assert fused[2] == 3
    for one, other in zip(fused[:2], own[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6 * float(other.abs().max()))


@pytest.mark.parametrize("name", ["lokr", "loha"])
def test_what_has_no_form_runs_its_own_forward(name: str) -> None:
    algorithm, options = KINDS[name]
    assert run(algorithm, {**options, "dora_wd": True}, fused=True, times=1, dropouts=Dropouts())[2] == 0
    assert run(algorithm, options, fused=True, times=1, dropouts=Dropouts(module=0.5))[2] == 0


def test_a_form_that_costs_more_than_the_base_is_not_taken() -> None:
    assert run("lokr", {"factor": 4, "full_matrix": True}, fused=True, times=1, dropouts=Dropouts())[2] == 0
    assert run("lokr", {"factor": 4}, fused=True, times=1, dropouts=Dropouts(), rank=5)[2] == 0


def test_dylora_trains_one_block_of_each_layer() -> None:
    """Two blocks of one rank: the gradients are those of the drawn block, and the first takes part in both."""
    torch.manual_seed(6)
    root = make_root()
    network = make_network(root, "dylora", {"unit": 1}, Dropouts())
    packs = fuse(root)
    drawn = set()
    for _ in range(8):
        network.groups["unet"].zero_grad()
        packs.refresh()
        root(torch.randn(3, 4, WIDE)).square().mean().backward()
        packs.finish()
        for adapter in network.adapters.values():
            down, up = adapter.lora_down.grad, adapter.lora_up.grad
            moved = {i for i in range(2) if down[i].abs().sum() > 0}
            assert len(moved) == 1
            assert moved == {i for i in range(2) if up[:, i].abs().sum() > 0}
            drawn |= moved
    assert drawn == {0, 1}
