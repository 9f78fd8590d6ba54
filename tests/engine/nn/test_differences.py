"""Whole differences of layers beside the fused blocks' products: results and gradients of the dense form."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

pytest.importorskip("diffusers")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from lorapipe_engine.nn.attach import Kind, NetworkPlan, Target, attach  # noqa: E402
from lorapipe_engine.nn.base import NO_DROPOUT, Size, adapter_class  # noqa: E402
from lorapipe_engine.nn.fused.packed import Packs  # noqa: E402
from lorapipe_engine.nn.fused.trained.differences import TrainedDifference, different  # noqa: E402
from lorapipe_engine.nn.fused.unet import fuse  # noqa: E402

from .test_fused import apart, make_unet, one_pass  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [1, 3])
def test_gradients_are_those_of_the_dense_form(bias: bool, count: int) -> None:
    """In float64, twice over."""
    torch.manual_seed(3)
    kind = adapter_class("full")
    bases = [nn.Linear(24, 16 + 8 * index, bias=bias) for index in range(count)]
    adapters: list[Any] = [kind.create(base, Size(0, 0.0), NO_DROPOUT, {}).double() for base in bases]
    for adapter in adapters:
        for role in adapter.roles:
            own = getattr(adapter, role)
            own.data.normal_(std=0.3)
            own.grad = torch.zeros_like(own)
    layers = [TrainedDifference(adapter) for adapter in adapters]
    packs = Packs([], differences=layers)
    packs.refresh()
    x = torch.randn(9, 24, dtype=torch.float64, requires_grad=True)
    residual = torch.randn(9, 16, dtype=torch.float64, requires_grad=True) if count == 1 else None
    found = []
    for dense in (False, True):
        for _ in range(2):
            if dense:
                biases = [a.bias + a.diff_b if bias else None for a in adapters]
                outs = [F.linear(x, a.weight + a.diff, b) for a, b in zip(adapters, biases, strict=True)]
                outs = outs if residual is None else [outs[0] + residual]
            else:
                outs = list(different(x, layers, residual))
            torch.cat(outs, dim=1).square().sum().backward()
        inputs = [x] if residual is None else [x, residual]
        rows = [*inputs, *(getattr(a, role) for a in adapters for role in a.roles)]
        found.append([out.detach() for out in outs] + [row.grad.clone() for row in rows])
        for row in rows:
            row.grad.zero_()
    for own, wanted in zip(*found, strict=True):
        assert float(wanted.abs().max()) > 0
        torch.testing.assert_close(own, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("algorithm", ["full", "ia3"])
def test_a_fused_unet_is_the_unet(algorithm: str, linear: bool) -> None:
    """On the layers of transformers and residual blocks; queries are frozen."""

    def found(fused: bool) -> list[Any]:
        unet = make_unet(linear, False)
        targets = [
            Target("unet", path, module)
            for path, module in unet.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and "blocks" in path and not path.endswith("to_q")
        ]
        torch.manual_seed(1)
        network = attach([unet], targets, NetworkPlan(rank=2, alpha=2, conv_rank=2, kind=Kind(algorithm)))
        for adapter in network.adapters.values():
            for role in adapter.roles:
                nn.init.normal_(getattr(adapter, role), std=0.05)
        packs = fuse(unet) if fused else None
        if packs is not None:
            packs.refresh()
        return one_pass(unet, network, packs)

    own, fused = found(False), found(True)
    assert max(apart(a, b) for a, b in zip(fused, own, strict=True)) < 1e-5


def test_half_precision_is_as_exact_as_the_layers_own() -> None:
    torch.manual_seed(0)
    base = nn.Linear(64, 64).bfloat16()
    adapter: Any = adapter_class("full").create(base, Size(0, 0.0), NO_DROPOUT, {})
    for role in adapter.roles:
        nn.init.normal_(getattr(adapter, role), std=0.01)
    layer = TrainedDifference(adapter)
    Packs([], differences=[layer]).refresh()
    x = torch.randn(512, 64).bfloat16()
    exact = F.linear(x.double(), base.weight + adapter.diff.double(), base.bias + adapter.diff_b.double())
    own, fused = adapter(x).double(), different(x, [layer])[0].double()
    assert apart(fused, exact) < apart(own, exact) * 1.05
