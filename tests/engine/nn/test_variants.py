"""What changes how an algorithm is trained: norms, learned factors, magnitudes, DyLoRA's blocks, frozen downs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from torch import nn  # noqa: E402

from lorapipe_engine.delta import dense_delta  # noqa: E402
from lorapipe_engine.errors import ConfigError  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.nn.attach import Network  # noqa: E402
from lorapipe_engine.nn.base import NO_DROPOUT, Adapter, Size, adapter_class, is_low_rank  # noqa: E402

pytestmark = pytest.mark.torch

DATA = Path(__file__).parents[2] / "data" / "networks"


def make(algorithm: str, base: nn.Module, rank: int = 4, alpha: float = 2.0, **options: Any) -> Adapter:
    torch.manual_seed(1)
    return adapter_class(algorithm).create(base, Size(rank, alpha), NO_DROPOUT, options)


def disturb(adapter: Adapter) -> Adapter:
    with torch.no_grad():
        for role in adapter.roles:
            getattr(adapter, role).add_(torch.randn(getattr(adapter, role).shape) * 0.1)
    return adapter


def by_the_rule(adapter: Adapter, multiplier: float = 1.0) -> Any:
    """The change that a reader of its file makes."""
    tensors = {s: t.detach().float().numpy() for s, t in adapter.file_tensors().items()}
    change = dense_delta(tensors, adapter.weight.detach().float().numpy(), multiplier=multiplier).weight
    return torch.from_numpy(change).float()


@pytest.mark.parametrize("layer", ["layernorm", "groupnorm"])
def test_norms_are_those_of_the_reference(layer: str) -> None:
    with open_tensors(DATA / "norm.safetensors") as file:
        every = {name: torch.from_numpy(np.array(file.read(name))) for name in file.tensors}
    size = len(every[f"base.{layer}.weight"])
    base: nn.Module = nn.LayerNorm(size) if layer == "layernorm" else nn.GroupNorm(4, size)
    base.load_state_dict({s: every[f"base.{layer}.{s}"] for s in ("weight", "bias")})
    adapter = make("norm", base)
    x = torch.randn(3, 5, size) if layer == "layernorm" else torch.randn(3, size, 5, 6)
    torch.testing.assert_close(adapter(x), base(x))
    adapter.load({s: every[f"lora_unet_{layer}.{s}"] for s in ("w_norm", "b_norm")})
    moved = nn.LayerNorm(size) if layer == "layernorm" else nn.GroupNorm(4, size)
    for multiplier, ending in ((1.0, ""), (0.7, ".m0.7")):
        adapter.multiplier = multiplier
        changes = [every[f"norm.{layer}.{kind}{ending}"] for kind in ("delta", "delta_b")]
        torch.testing.assert_close(adapter.delta_at(multiplier), changes[0])
        own = adapter.bias_delta()
        assert own is not None
        torch.testing.assert_close(own * multiplier, changes[1])
        moved.load_state_dict({"weight": base.weight + changes[0], "bias": base.bias + changes[1]})
        torch.testing.assert_close(adapter(x), moved(x), rtol=1e-5, atol=1e-5)
    small = adapter.bfloat16()
    for role in ("w_norm", "b_norm"):
        getattr(small, role).data = getattr(adapter, role).float() * 1e-3
    # A change far under what bf16 weights can hold still comes through.
    change = (small(x.bfloat16()).float() - base.bfloat16()(x.bfloat16()).float()).abs().mean()
    assert float(change) > 0


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_a_learned_factor_starts_at_nothing_and_is_folded_into_the_file(algorithm: str, layer: str) -> None:
    base = nn.Linear(24, 16) if layer == "linear" else nn.Conv2d(12, 20, 3, padding=1)
    adapter = make(algorithm, base, use_scalar=True, use_tucker=True)
    x = torch.randn(2, 5, 24) if layer == "linear" else torch.randn(2, 12, 5, 5)
    torch.testing.assert_close(adapter(x), base(x))
    assert float(adapter.scalar.detach()) == 0
    assert all(float(getattr(adapter, r).abs().max()) > 0 for r in adapter.roles if r != "scalar")
    adapter(x).square().mean().backward()
    assert float(adapter.scalar.grad) != 0
    nn.init.constant_(adapter.scalar, -0.7)
    assert "scalar" not in adapter.file_tensors()
    torch.testing.assert_close(by_the_rule(adapter), adapter.delta())
    again = make(algorithm, base, use_scalar=True, use_tucker=True)
    again.load({s: t.detach() for s, t in adapter.file_tensors().items()})
    torch.testing.assert_close(again.delta(), adapter.delta())
    torch.testing.assert_close(again.change_norm(), adapter.delta().norm())


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("by_output", [False, True])
@pytest.mark.parametrize("layer", ["linear", "conv", "conv1x1"])
def test_magnitudes_start_at_the_weights_own_and_are_read_alike(
    algorithm: str, by_output: bool, layer: str
) -> None:
    base = (
        nn.Linear(24, 16) if layer == "linear" else nn.Conv2d(12, 20, 3 if layer == "conv" else 1, padding=1)
    )
    adapter = make(algorithm, base, dora_wd=True, wd_on_output=by_output)
    x = torch.randn(2, 5, 24) if layer == "linear" else torch.randn(2, 12, 5, 5)
    torch.testing.assert_close(adapter(x), base(x))
    assert not is_low_rank(adapter)
    disturb(adapter)
    shape = adapter.file_tensors()["dora_scale"].shape
    assert shape[0 if by_output else 1] == base.weight.shape[0 if by_output else 1]
    kind = adapter_class(algorithm)
    seen = kind.options_in({s: t.detach() for s, t in adapter.file_tensors().items()})
    assert (seen["dora_wd"], seen["wd_on_output"]) == (True, by_output)
    for multiplier in (1.0, 0.4):
        adapter.multiplier = multiplier
        change = by_the_rule(adapter, multiplier)
        torch.testing.assert_close(adapter.delta_at(multiplier), change, rtol=1e-4, atol=1e-6)
        with torch.no_grad():
            moved = (
                nn.Linear(24, 16) if layer == "linear" else nn.Conv2d(12, 20, base.weight.shape[2], padding=1)
            )
            moved.load_state_dict({"weight": base.weight + change, "bias": base.bias})
            torch.testing.assert_close(adapter(x), moved(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("by_output", [False, True])
def test_small_magnitudes_have_an_effect_in_bf16(by_output: bool) -> None:
    base = nn.Linear(64, 48).bfloat16()
    adapter = make("lora", base, dora_wd=True, wd_on_output=by_output)
    with torch.no_grad():
        adapter.magnitude.mul_(1.0005)
        x = torch.randn(200, 64).bfloat16()
        # 1.0005 rounds to 1 in bf16; before the sum is rounded, the change is half a thousandth of the product.
        base.bias.zero_()
        base.weight.requires_grad_(False)
        seen = []
        base.register_forward_hook(lambda _m, _i, out: seen.append(out))
        adapter(x)
    if by_output:
        assert len(seen) == 1
    else:
        torch.testing.assert_close(seen[1].float(), 0.0005 * seen[0].float(), rtol=0.05, atol=1e-4)


@pytest.mark.parametrize("by_output", [False, True])
@pytest.mark.parametrize("layer", ["linear", "conv", "strided 1x1"])
@pytest.mark.parametrize("scalar", [False, True])
def test_norms_under_a_lora_are_those_of_the_dense_sum(by_output: bool, layer: str, scalar: bool) -> None:
    base: nn.Module = nn.Linear(24, 16)
    if layer != "linear":
        base = nn.Conv2d(12, 20, 3, padding=1) if layer == "conv" else nn.Conv2d(12, 20, 1, stride=2)
    adapter = disturb(make("lora", base, dora_wd=True, wd_on_output=by_output, use_scalar=scalar)).double()
    axis = 0 if by_output else 1

    def dense() -> Any:
        rest = [d for d in range(adapter.weight.dim()) if d != axis]
        return (adapter.weight + adapter.inner_delta()).square().sum(rest, keepdim=True).sqrt()

    for _ in range(2):
        norms = adapter.magnitude / adapter._ratio() - torch.finfo(torch.float32).eps
        torch.testing.assert_close(norms, dense(), rtol=1e-9, atol=0)
        with torch.no_grad():  # another weight: what is kept of it is measured anew
            adapter.weight.mul_(2)
    if layer == "linear":  # a change that takes a whole column or row away leaves no norm below 0
        whole = make(
            "lora", nn.Linear(4, 4, bias=False), rank=4, alpha=4.0, dora_wd=True, wd_on_output=by_output
        )
        with torch.no_grad():
            whole.lora_up.copy_(torch.eye(4))
            whole.lora_down.copy_(-whole.weight)
        assert torch.isfinite(whole._ratio()).all()


@pytest.mark.parametrize("layer", ["linear", "conv"])
@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr"])
def test_magnitudes_by_inputs_have_the_same_gradients_in_bf16(algorithm: str, layer: str) -> None:
    base = nn.Linear(64, 48) if layer == "linear" else nn.Conv2d(32, 24, 3, padding=1)
    x = torch.randn(2, 50, 64) if layer == "linear" else torch.randn(2, 32, 7, 7)
    with torch.no_grad():
        for own in base.parameters():
            own.copy_(own.bfloat16())
    x = x.bfloat16().float()
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        adapter = disturb(make(algorithm, base.to(dtype), dora_wd=True))
        adapter.multiplier = 0.7
        given = x.to(dtype).clone().requires_grad_()
        torch.manual_seed(3)
        out = adapter(given)
        (out * torch.randn(out.shape).to(dtype)).sum().backward()
        gradients.append([given.grad, *(getattr(adapter, role).grad for role in adapter.roles)])
        base.to(torch.float32)
    for exact, rounded in zip(*gradients, strict=True):
        assert float((rounded.float() - exact).norm() / exact.norm()) < 0.02


def test_dylora_trains_one_block_under_those_that_are_left_out() -> None:
    base = nn.Linear(24, 16)
    adapter = make("dylora", base, rank=6, alpha=3.0, unit=2)
    nn.init.normal_(adapter.lora_up)
    whole = adapter.delta()
    x = torch.randn(50, 24)
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        adapter.zero_grad()
        out = adapter(x) - base(x)
        cuts = [
            b
            for b in (2, 4, 6)
            if torch.allclose(out, x @ (adapter.lora_up[:, :b] @ adapter.lora_down[:b]).T * 0.5, atol=1e-4)
        ]
        assert len(cuts) == 1
        out.square().mean().backward()
        (cut,) = cuts
        moved = [i for i in range(6) if float(adapter.lora_up.grad[:, i].abs().max()) > 0]
        assert moved == [cut - 2, cut - 1]
        assert moved == [i for i in range(6) if float(adapter.lora_down.grad[i].abs().max()) > 0]
        seen.add(cut)
    assert seen == {2, 4, 6}
    adapter.eval()
    torch.testing.assert_close(adapter(x) - base(x), x @ whole.T, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(by_the_rule(adapter), whole)
    with pytest.raises(ConfigError, match="unit 4 does not divide the rank 6"):
        make("dylora", base, rank=6, unit=4)


def test_the_downs_of_lora_fa_are_kept_and_not_trained() -> None:
    base = nn.Linear(240, 160)
    adapter = make("lora_fa", base, rank=16)
    assert float(adapter.lora_down.std()) == pytest.approx((2 / 256) ** 0.5, rel=0.1)
    network = Network({"m": adapter}, {"m": "unet"})
    assert network.count() == 160 * 16 == network.groups["unet"].parameter.numel()
    assert network.state().keys() == {"m.lora_up", "m.lora_down"}
    assert network.file_tensors().keys() == {"m.alpha", "m.lora_down.weight", "m.lora_up.weight"}
    nn.init.normal_(adapter.lora_up)
    before = adapter.lora_down.clone()
    adapter(torch.randn(3, 240)).sum().backward()
    assert adapter.lora_down.grad is None
    type(adapter).limit_([adapter], 1.0)
    assert float(adapter.delta().norm().detach()) == pytest.approx(1.0, rel=1e-4)
    assert torch.equal(adapter.lora_down, before)


@pytest.mark.parametrize("limit", [0.5, 100.0])
@pytest.mark.parametrize("algorithm", ["oft", "boft"])
@pytest.mark.parametrize("constraint", [0.0, 0.01])
def test_rotations_are_held_under_a_norm(algorithm: str, limit: float, constraint: float) -> None:
    adapter = disturb(make(algorithm, nn.Linear(24, 16), constraint=constraint, rescaled=True))
    before = adapter.delta().clone()
    norms = type(adapter).limit_([adapter], limit)
    torch.testing.assert_close(norms[0], before.norm())
    if float(before.norm()) <= limit:
        torch.testing.assert_close(adapter.delta(), before)
    else:
        assert float(adapter.delta().norm().detach()) == pytest.approx(limit, rel=0.01)


def test_sizes_that_have_no_blocks_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"320 outputs needs blocks of 10 or more, not 4; give --network_dim or"
    ):
        make("boft", nn.Linear(8, 320), rank=4)
    with pytest.raises(ConfigError, match="15 outputs has no butterflies"):
        make("boft", nn.Linear(8, 15), rank=4)
    with pytest.raises(ConfigError, match="3 blocks do not divide a layer of 16 outputs"):
        make("oft", nn.Linear(8, 16), rank=3, count=True)
    assert make("oft", nn.Linear(8, 16), rank=8, count=True).oft_blocks.shape == (8, 2, 2)
    assert make("oft", nn.Linear(8, 16), rank=3, block_size=9).oft_blocks.shape == (2, 8, 8)
