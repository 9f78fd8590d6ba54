"""A LoRA on a convolution, as one convolution with its factor: results and gradients of the dense form."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from lorapipe_engine.nn.base import NO_DROPOUT, Size, adapter_class  # noqa: E402
from lorapipe_engine.nn.fused.packed import Packs  # noqa: E402
from lorapipe_engine.nn.fused.trained.convolutions import TrainedConvolution, can_convolve  # noqa: E402

pytestmark = pytest.mark.torch


def make(base: nn.Conv2d, **options: Any) -> Any:
    adapter: Any = adapter_class("lora").create(base, Size(3, 2.0), NO_DROPOUT, options)
    for role in adapter.roles:
        nn.init.normal_(getattr(adapter, role), std=0.3)
        getattr(adapter, role).grad = torch.zeros_like(getattr(adapter, role))
    return adapter


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("beside", [True, False])
def test_gradients_are_those_of_the_dense_form(stride: int, beside: bool) -> None:
    """In float64, twice over; ``beside``: with a residual, and a bias of the layer's own."""
    torch.manual_seed(3)
    base = nn.Conv2d(5, 7, 3, stride, 1, bias=beside).double()
    adapter = make(base)
    adapter.double()
    for role in adapter.roles:
        getattr(adapter, role).grad = torch.zeros_like(getattr(adapter, role))
    weight = base.weight.detach().clone()
    layer = TrainedConvolution(adapter)
    assert torch.equal(base.weight, weight)
    Packs([], convolutions=[layer]).refresh()
    x = torch.randn(2, 5, 6, 8, dtype=torch.float64, requires_grad=True)
    residual = torch.randn(2, 7, 6 // stride, 8 // stride, dtype=torch.float64, requires_grad=True)
    found = []
    for dense in (False, True):
        for _ in range(2):
            if dense:
                out = F.conv2d(x, weight + adapter.delta(), base.bias, stride, 1)
                out = out + residual if beside else out
            else:
                out = layer(x, residual if beside else None)
            out.square().sum().backward()
        rows = [x, *([residual] if beside else []), *(getattr(adapter, role) for role in adapter.roles)]
        found.append([out.detach(), *(row.grad.clone() for row in rows)])
        for row in rows:
            row.grad.zero_()
    for own, wanted in zip(*found, strict=True):
        assert float(wanted.abs().max()) > 0
        torch.testing.assert_close(own, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))


def test_half_precision_is_as_exact_as_the_layers_own() -> None:
    torch.manual_seed(3)
    base = nn.Conv2d(16, 24, 3, padding=1).bfloat16()
    adapter = make(base)
    x, residual = torch.randn(2, 16, 8, 8).bfloat16(), torch.randn(2, 24, 8, 8).bfloat16()
    exact = F.conv2d(
        x.double(), base.weight.double() + adapter.delta().double(), base.bias.double(), padding=1
    )
    exact = (exact + residual.double()).detach()
    own = (adapter(x) + residual).detach().double()
    layer = TrainedConvolution(adapter)
    Packs([], convolutions=[layer]).refresh()
    fused = layer(x, residual).detach().double()
    assert float((fused - exact).norm()) < float((own - exact).norm()) * 1.02


def test_what_is_no_plain_product_runs_its_own_forward() -> None:
    assert can_convolve(make(nn.Conv2d(5, 7, 3)))
    assert not can_convolve(make(nn.Conv2d(5, 7, 3), use_tucker=True))
    assert not can_convolve(make(nn.Conv2d(5, 7, 3), dora_wd=True))
    assert not can_convolve(make(nn.Conv2d(5, 7, 3, dilation=2)))
    assert not can_convolve(make(nn.Conv2d(5, 7, 1)))
