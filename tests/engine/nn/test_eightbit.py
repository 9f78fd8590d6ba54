"""Frozen weights in 8 bits."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from lorapipe_engine.nn.attach import NetworkPlan, Target, attach  # noqa: E402
from lorapipe_engine.nn.eightbit import HELD, hold_in_8_bits, is_held  # noqa: E402


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(4, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.short = nn.Conv2d(8, 12, 1, bias=False)
        self.fc = nn.Linear(12, 12)
        self.out = nn.Linear(12, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.short(self.norm(self.down(self.conv_in(x)))).flatten(2).mT
        return self.out(torch.tanh(self.fc(x)))


def rounded(model: nn.Module) -> nn.Module:
    """The weights as 8 bits have them, in float32."""
    for name in ("down", "short", "fc", "out"):
        weight = getattr(model, name).weight
        weight.data = weight.data.to(HELD).float()
    return model


def with_network(model: nn.Module) -> object:
    torch.manual_seed(1)
    targets = [Target("unet", name, getattr(model, name)) for name in ("down", "fc", "out")]
    network = attach([model], targets, NetworkPlan(rank=2, alpha=2.0, conv_rank=2, conv_alpha=2.0))
    with torch.no_grad():
        for group in network.groups.values():
            group.parameter.normal_(0, 0.3)
    return network


def test_results_and_gradients_are_those_of_rounded_weights() -> None:
    torch.manual_seed(0)
    held, wide = Small(), Small()
    wide.load_state_dict(held.state_dict())
    assert hold_in_8_bits(held) == 4
    assert held.down.weight.dtype == held.fc.weight.dtype == HELD
    assert held.conv_in.weight.dtype == held.norm.weight.dtype == held.fc.bias.dtype == torch.float32
    assert is_held(held)
    assert not is_held(wide)
    grads = []
    x = torch.randn(2, 4, 10, 6, generator=torch.Generator().manual_seed(3))
    for model in (held, rounded(wide)):
        network = with_network(model)
        model(x).square().mean().backward()
        grads.append([group.parameter.grad.clone() for group in network.groups.values()])
    for one, other in zip(*grads, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_no_wide_copy_is_kept_for_the_backward_pass() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).requires_grad_(False)
    hold_in_8_bits(model)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(2, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x)
    assert kept
    assert all(tensor.dtype == HELD for tensor in kept if tensor.shape == (64, 64))
