"""Frozen weights in 8 and 4 bits."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from lorapipe_engine.nn.attach import NetworkPlan, Target, attach  # noqa: E402
from lorapipe_engine.nn.quantize import FORMS, is_quantized, quantize  # noqa: E402


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    if request.param == "nf4":
        pytest.importorskip("bitsandbytes")
    return str(request.param)


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


def rounded(small: nn.Module, wide: nn.Module) -> nn.Module:
    """The weights as the quantized form has them, in float32."""
    for name in ("down", "short", "fc", "out"):
        layer = getattr(small, name)
        getattr(wide, name).weight.data = layer.form.unpack(layer, torch.float32)
    return wide


def with_network(model: nn.Module) -> object:
    torch.manual_seed(1)
    targets = [Target("unet", name, getattr(model, name)) for name in ("down", "fc", "out")]
    network = attach([model], targets, NetworkPlan(rank=2, alpha=2.0, conv_rank=2, conv_alpha=2.0))
    with torch.no_grad():
        for group in network.groups.values():
            group.parameter.normal_(0, 0.3)
    return network


def test_results_and_gradients_are_those_of_rounded_weights(form: str) -> None:
    torch.manual_seed(0)
    small, wide = Small(), Small()
    wide.load_state_dict(small.state_dict())
    assert quantize(small, form) == 4
    assert small.fc.weight.shape == (12, 12)
    assert small.conv_in.weight.dtype == small.norm.weight.dtype == small.fc.bias.dtype == torch.float32
    assert is_quantized(small)
    assert not is_quantized(wide)
    grads = []
    x = torch.randn(2, 4, 10, 6, generator=torch.Generator().manual_seed(3))
    for model in (small, rounded(small, wide)):
        network = with_network(model)
        model(x).square().mean().backward()
        grads.append([group.parameter.grad.clone() for group in network.groups.values()])
    for one, other in zip(*grads, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


ERRORS = {"fp8": 0.0625, "int8": 0.5 / 127 + 0.004, "nf4": 0.16}  # of the largest value of a row or block


def test_weights_are_near_what_they_were(form: str) -> None:
    layer = nn.Linear(256, 64, bias=False)
    nn.init.normal_(layer.weight, 0, 0.05, generator=torch.Generator().manual_seed(0))
    before = layer.weight.detach().clone()
    model = nn.Sequential(layer)
    quantize(model, form)
    after = layer.form.unpack(layer, torch.float32)
    worst = (after - before).abs() / before.abs().amax(1, keepdim=True)
    assert 0 < worst.max() <= ERRORS[form]


def test_no_wide_copy_is_kept_for_the_backward_pass(form: str) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).requires_grad_(False)
    quantize(model, form)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    x = torch.randn(2, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(x)
    assert not any(tensor.shape == (64, 64) for tensor in kept)
    out.sum().backward()
    assert x.grad is not None
