"""Rotations (OFT, BOFT): the inverse by steps that a graph can hold, and turns that a network makes together."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from lorapipe_engine.nn import cayley  # noqa: E402
from lorapipe_engine.nn.attach import Kind, Network, NetworkPlan, Target, attach  # noqa: E402
from lorapipe_engine.nn.base import NO_DROPOUT, Dropouts, Size, adapter_class  # noqa: E402

pytestmark = pytest.mark.torch


def skewed(count: int, size: int, scale: float) -> Any:
    torch.manual_seed(0)
    blocks = torch.randn(count, size, size, dtype=torch.float64) * scale
    return blocks - blocks.mT


@pytest.mark.parametrize("size", [2, 3, 8, 33, 100])
@pytest.mark.parametrize("scale", [1e-6, 0.1, 1.0])
def test_turns_are_rotations_as_a_solver_makes_them(size: int, scale: float) -> None:
    skew = skewed(5, size, scale)
    one = torch.eye(size, dtype=torch.float64)
    wanted = 2 * torch.linalg.solve(one - skew, skew)
    near = 1e-11 * float(wanted.abs().max())
    found = cayley.turns(skew)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=near)
    torch.testing.assert_close((one + found) @ (one + found).mT, one.expand_as(found), rtol=0, atol=1e-11)
    short = cayley.turns(skew.float()).double()
    torch.testing.assert_close(short, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("size", [3, 40])
def test_gradients_of_turns_are_the_solvers(size: int) -> None:
    grads = []
    for own in (True, False):
        skew = skewed(2, size, 0.3).requires_grad_()
        one = torch.eye(size, dtype=torch.float64)
        turned = cayley.turns(skew) if own else torch.linalg.solve(one - skew, one + skew) - one
        torch.manual_seed(1)
        (turned * torch.randn(turned.shape, dtype=torch.float64)).sum().backward()
        grads.append(skew.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------ made together


class Model(nn.Module):
    """Layers of two sizes, two of them alike, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 24), nn.Linear(24, 24)
        self.third, self.picture = nn.Linear(24, 48), nn.Conv2d(48, 24, 3, padding=1)

    def forward(self, x: Any) -> Any:
        hidden = torch.tanh(self.second(torch.tanh(self.first(x))))
        rows = torch.tanh(self.third(hidden))
        return self.picture(rows.mT.reshape(len(x), 48, 3, -1))


def network_of(algorithm: str, dropouts: Dropouts = NO_DROPOUT, **options: Any) -> tuple[Any, Network]:
    torch.manual_seed(0)
    model = Model().double()
    targets = [Target("unet", f"lora_unet_{name}", module) for name, module in model.named_children()]
    sizes = {target.name: Size(6, 1.0) for target in targets}
    plan = NetworkPlan(rank=6, alpha=1.0, sizes=sizes, kind=Kind(algorithm, options), dropouts=dropouts)
    network = attach([model], targets, plan)
    for group in network.groups.values():
        values = torch.randn(group.parameter.shape) * 0.1
        group.parameter.data.add_(values)
    return model, network


def passes(model: Any, network: Network, *, together: bool, count: int = 2) -> list[Any]:
    """Results and gradients of several passes of a step, in float64 but for what the network's own type rounds."""
    for group in network.groups.values():
        group.zero_grad()
    if together:
        network.begin()
    torch.manual_seed(2)
    outs = []
    for _ in range(count):
        out = model(torch.randn(2, 6, 12, dtype=torch.float64))
        out.square().sum().backward()
        network.finish()
        outs.append(out.detach())
    network.end()
    return [*outs, *(group.grad.clone() for group in network.groups.values())]


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("oft", {}),
    ("oft", {"constraint": 0.002, "rescaled": True}),
    ("boft", {}),
    ("boft", {"constraint": 0.01, "rescaled": True}),
]


@pytest.mark.parametrize(("algorithm", "options"), OPTIONS)
def test_what_is_made_together_is_what_each_layer_makes(algorithm: str, options: dict[str, Any]) -> None:
    model, network = network_of(algorithm, **options)
    apart, whole = (passes(model, network, together=together) for together in (False, True))
    for found, wanted in zip(whole, apart, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    assert float(apart[-1].abs().max()) > 0


def test_turns_follow_the_parameters_after_a_step() -> None:
    model, network = network_of("oft")
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    network.begin()
    before = model(x).detach()
    network.end()
    for group in network.groups.values():
        group.parameter.data.mul_(2)
    alone = model(x).detach()
    assert not torch.allclose(alone, before)
    network.begin()
    torch.testing.assert_close(model(x).detach(), alone, rtol=1e-5, atol=1e-6)
    network.end()


@pytest.mark.parametrize("multiplier", [0.0, 0.5, -1.0])
def test_a_strength_counts_inside_a_step(multiplier: float) -> None:
    model, network = network_of("boft")
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    with network.scaled(multiplier):
        wanted = model(x).detach()
        network.begin()
        torch.testing.assert_close(model(x).detach(), wanted)
    network.end()


def test_a_layer_that_is_left_out_is_the_frozen_one_and_gets_no_gradient() -> None:
    model, network = network_of("oft", Dropouts(module=1.0))
    network.train()
    network.begin()
    out = model(torch.ones(2, 6, 12, dtype=torch.float64))
    out.sum().backward()
    network.finish()
    with network.off():
        torch.testing.assert_close(model(torch.ones(2, 6, 12, dtype=torch.float64)), out)
    assert all(not group.grad.any() for group in network.groups.values())
    network.end()


class Counting(TorchDispatchMode):
    """Counts the operations that torch starts."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("algorithm", "sides"), [("oft", (4, 6)), ("boft", (6,))])
def test_nothing_in_a_step_is_a_solver_or_waits_for_the_device(
    algorithm: str, sides: tuple[int, ...]
) -> None:
    """So that a graph can hold it. More layers make no more inverses."""
    model, network = network_of(algorithm, constraint=0.01, rescaled=True)
    with Counting() as counted:
        passes(model, network, together=True, count=1)
    odd = ("linalg_inv", "linalg_solve", "linalg_lu", "_local_scalar_dense", "nonzero", "is_nonzero", "equal")
    assert [name for name in counted.names if any(word in name for word in odd)] == []
    # One elimination for each size of block: a step for each row of it, of all layers together.
    assert counted.names["aten.addcmul_.default"] == sum(sides)


@pytest.mark.parametrize("algorithm", ["oft", "boft"])
def test_layers_that_are_alike_are_held_under_a_norm_together(algorithm: str) -> None:
    found = []
    for together in (True, False):
        torch.manual_seed(0)
        rows = [adapter_class(algorithm).create(nn.Linear(5, 24), Size(6, 0.0), NO_DROPOUT, {}) for _ in "ab"]
        for row, scale in zip(rows, (0.3, 0.01), strict=True):
            row.oft_blocks.data.normal_(0, scale)
        for group in [rows] if together else [[row] for row in rows]:
            type(rows[0]).limit_(group, 0.5)
        found.append([row.delta().detach() for row in rows])
    torch.testing.assert_close(found[0], found[1])
    norms = [float(change.norm()) for change in found[0]]
    assert norms[0] == pytest.approx(0.5, rel=0.01)
    assert norms[1] < 0.4
