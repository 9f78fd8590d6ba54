"""Several adapters on one layer, as pictures of plans are drawn with."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from lorapipe_engine.nn.base import NO_DROPOUT, Adapter, Size, adapter_class  # noqa: E402
from lorapipe_engine.train.sample.networks import Together  # noqa: E402

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("lora", {}),
    ("lora", {"dora_wd": True}),
    ("loha", {}),
    ("lokr", {}),
    ("oft", {}),
    ("ia3", {}),
    ("ia3", {"train_on_input": True}),
    ("full", {}),
]


def adapter(base: nn.Module, kind: str, options: dict[str, Any], multiplier: float) -> Adapter:
    made = adapter_class(kind).create(base, Size(2, 2.0), NO_DROPOUT, options)
    with torch.no_grad():
        for name, parameter in made.named_parameters(recurse=False):
            noise = 0.1 * torch.randn(parameter.shape)
            # A magnitude stays near the norm that it was.
            parameter.add_(noise if "scale" not in name else noise * 0.1)
    made.multiplier = multiplier
    return made.train(False)


@pytest.mark.parametrize("is_conv", [False, True])
def test_changes_are_those_of_the_base_and_are_added(is_conv: bool) -> None:
    torch.manual_seed(0)
    base = nn.Conv2d(8, 12, 3, padding=1) if is_conv else nn.Linear(8, 12)
    x = torch.randn(2, 8, 5, 5) if is_conv else torch.randn(2, 5, 8)
    strengths = [0.5 + 0.1 * place for place in range(len(KINDS))]
    rows = [
        adapter(base, kind, options, strength)
        for (kind, options), strength in zip(KINDS, strengths, strict=True)
    ]
    with torch.no_grad():
        weight, bias = base.weight.clone(), base.bias.clone()
        for row in rows:
            weight += row.delta_at(row.multiplier)
            own = row.bias_delta()
            bias += 0 if own is None else own * row.multiplier
        wanted = F.conv2d(x, weight, bias, padding=1) if is_conv else F.linear(x, weight, bias)
        for order in (rows, rows[::-1]):
            assert torch.allclose(Together(order)(x), wanted, atol=2e-5)
        assert not torch.allclose(base(x), wanted, atol=0.1)
        assert all(row.base is base for row in rows), "the adapters themselves stay as they were"
