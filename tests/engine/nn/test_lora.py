"""LoRA modules, how they are put into a model, and their flat buffers."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from lorapipe_engine.errors import ConfigError, InputError  # noqa: E402
from lorapipe_engine.nn.adapters.lora import Lora  # noqa: E402
from lorapipe_engine.nn.attach import Network, NetworkPlan, Target, attach, detach  # noqa: E402
from lorapipe_engine.nn.base import Dropouts  # noqa: E402
from lorapipe_engine.train.optimizers import Rates, build_optimizer, set_rates  # noqa: E402


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 12), nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.Conv2d(4, 6, 1))


def attached(root: nn.Sequential, plan: NetworkPlan) -> Network:
    parts = ["te1", "unet", "unet"]
    return attach([root], [Target(parts[i], f"m{i}", layer) for i, layer in enumerate(root)], plan)


PLAN = NetworkPlan(rank=3, alpha=1.5, conv_rank=2, conv_alpha=1.0)


def fill(network: Network) -> None:
    with torch.no_grad():
        for adapter in network.adapters.values():
            for parameter in adapter.parameters():
                if parameter.requires_grad:
                    parameter.normal_()


def test_a_new_network_changes_nothing() -> None:
    root = model()
    x = torch.randn(2, 10)
    before = root[0](x)
    attached(root, PLAN)
    assert torch.equal(root[0](x), before)


@pytest.mark.parametrize("multiplier", [1.0, 0.7, -0.5])
def test_forward_equals_the_dense_change(multiplier: float) -> None:
    root = model()
    network = attached(root, PLAN)
    fill(network)
    network.set_multiplier(multiplier)
    x, picture = torch.randn(2, 10), torch.randn(2, 1, 8, 8)
    deltas = [network.adapters[f"m{i}"].delta() * multiplier for i in range(3)]
    layers = [network.adapters[f"m{i}"] for i in range(3)]
    torch.testing.assert_close(root[0](x), F.linear(x, layers[0].weight + deltas[0], layers[0].bias))
    want = F.conv2d(picture, layers[1].weight + deltas[1], layers[1].bias, 2, 1)
    torch.testing.assert_close(root[1](picture), want)
    torch.testing.assert_close(root[2](want), F.conv2d(want, layers[2].weight + deltas[2], layers[2].bias))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rank", [2, 24])
def test_narrow_and_wide_factors_have_the_same_values_and_gradients(rank: int, bias: bool) -> None:
    torch.manual_seed(3)
    adapter = Lora(nn.Linear(32, 48, bias=bias), rank, alpha=6)
    adapter.multiplier = 0.7
    nn.init.normal_(adapter.lora_up)
    x, gradient = torch.randn(2, 300, 32, requires_grad=True), torch.randn(2, 300, 48)
    inputs = (x, adapter.lora_down, adapter.lora_up)
    given = (adapter(x), *torch.autograd.grad(adapter(x), inputs, gradient))
    change = F.linear(F.linear(x, adapter.lora_down), adapter.lora_up) * (0.7 * 6 / rank)
    plain = adapter.base(x) + change
    for one, other in zip(given, (plain, *torch.autograd.grad(plain, inputs, gradient)), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(other.detach().abs().max()))


def test_file_keys_and_shapes() -> None:
    tensors = attached(model(), PLAN).file_tensors()
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {
        "m0.alpha": (),
        "m0.lora_down.weight": (3, 10),
        "m0.lora_up.weight": (12, 3),
        "m1.alpha": (),
        "m1.lora_down.weight": (2, 1, 3, 3),
        "m1.lora_up.weight": (4, 2, 1, 1),
        "m2.alpha": (),
        "m2.lora_down.weight": (3, 4, 1, 1),
        "m2.lora_up.weight": (6, 3, 1, 1),
    }


def test_large_kernels_stay_without_a_conv_rank() -> None:
    network = attached(model(), NetworkPlan(rank=3, alpha=3.0))
    assert list(network.adapters) == ["m0", "m2"]


def test_detach_gives_the_model_back() -> None:
    root = model()
    layers = list(root)
    network = attached(root, PLAN)
    fill(network)
    assert detach([root]) == 3
    assert list(root) == layers


def test_load_takes_what_file_tensors_gave_and_nothing_else() -> None:
    first, second = attached(model(), PLAN), attached(model(), PLAN)
    fill(first)
    second.load(first.file_tensors())
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.file_tensors().values(), second.file_tensors().values(), strict=True)
    )
    name = next(iter(first.adapters))
    odd = {
        "1 modules differ, first extra": {"extra.alpha": torch.tensor(1.0)},
        f"{name}: x has no place in this network": {f"{name}.x": torch.ones(2)},
        rf"{name}: lora_up.weight has shape \(3,\), the model's layer needs": {
            f"{name}.lora_up.weight": torch.ones(3)
        },
    }
    for told, more in odd.items():
        with pytest.raises(InputError, match=told):
            second.load({**first.file_tensors(), **more})


def test_a_state_is_taken_up_bit_for_bit_and_only_by_its_own_network() -> None:
    first, second = attached(model(), PLAN), attached(model(), PLAN)
    fill(first)
    second.load_state(first.state())
    for part, group in first.groups.items():
        assert torch.equal(group.parameter, second.groups[part].parameter)
    name = next(iter(first.state()))
    for odd in ({name: torch.ones(1)}, {"x.lora_up": torch.ones(1)}):
        with pytest.raises(ConfigError, match="of another network: 1 tensors differ"):
            second.load_state({**first.state(), **odd})


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ConfigError, match="nothing to train"):
        attach([model()], [], PLAN)


def test_flat_updates_equal_updates_of_single_tensors() -> None:
    x = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    flat_root, plain_root = model(), model()
    flat, plain = attached(flat_root, PLAN), attached(plain_root, PLAN)
    fill(flat)
    plain.load(flat.file_tensors())
    arguments = {"weight_decay": 0.01}
    optimizer = build_optimizer("AdamW", arguments, flat.groups, Rates({"te1": 1e-2, "unet": 1e-3}))
    singles = [p.detach().clone().requires_grad_() for p in plain.groups["te1"].parameters]
    reference = torch.optim.AdamW(singles, lr=1e-2, weight_decay=0.01)
    for _ in range(5):
        for group in flat.groups.values():
            group.zero_grad()
        set_rates(optimizer, 1.0)
        flat_root[0](x).square().mean().backward()
        optimizer.step()
        down, up = singles
        reference.zero_grad()
        base = plain.adapters["m0"].base
        (base(x) + F.linear(F.linear(x, down), up) * 0.5).square().mean().backward()
        reference.step()
    for mine, other in zip(flat.groups["te1"].parameters, singles, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["element", "rank", "module"])
def test_dropouts_keep_the_mean_and_rest_outside_training(kind: str) -> None:
    root = nn.Sequential(nn.Linear(10, 12))
    plan = NetworkPlan(rank=8, alpha=8.0, dropouts=Dropouts(**{kind: 0.5}))
    network = attach([root], [Target("unet", "m", root[0])], plan)
    fill(network)
    x = torch.randn(1, 10)
    network.train(False)
    still = root[0](x) - network.adapters["m"].base(x)
    network.train()
    torch.manual_seed(0)
    drawn = torch.stack([root[0](x) - network.adapters["m"].base(x) for _ in range(4000)])
    assert drawn.std(0).max() > 0.1
    # kohya's module dropout is the one that is not compensated by a scale.
    expected = still * (0.5 if kind == "module" else 1.0)
    torch.testing.assert_close(drawn.mean(0), expected, rtol=0.1, atol=0.35)


@pytest.mark.parametrize("rank_scale", [None, True, False])
@pytest.mark.parametrize("layer", ["linear", "conv"])
def test_ranks_that_are_kept_are_scaled_as_asked(rank_scale: bool | None, layer: str) -> None:
    """By 1 / (1 - p) as in sd-scripts, by the share of a sample's ranks that is kept as in LyCORIS, or not at all."""
    base: nn.Module = nn.Linear(10, 12) if layer == "linear" else nn.Conv2d(10, 12, 3, padding=1)
    adapter = Lora(base, 4, 2.0, Dropouts(rank=0.6, rank_scale=rank_scale))
    nn.init.normal_(adapter.lora_up)
    x = torch.randn(40, 7, 10) if layer == "linear" else torch.randn(40, 10, 5, 5)
    shape = (40, 1, 4) if layer == "linear" else (40, 4, 1, 1)
    torch.manual_seed(3)
    kept = (torch.rand(shape) > 0.6).float()
    share = kept.mean(dim=2 if layer == "linear" else 1, keepdim=True)
    assert bool((share == 0).any())
    factor = kept / 0.4 if rank_scale is None else kept / share.clamp(min=0.1) if rank_scale else kept
    if layer == "linear":
        change = F.linear(F.linear(x, adapter.lora_down) * factor, adapter.lora_up)
    else:
        change = F.conv2d(F.conv2d(x, adapter.lora_down, padding=1) * factor, adapter.lora_up)
    torch.manual_seed(3)
    torch.testing.assert_close(adapter(x) - base(x), change * 0.5, rtol=1e-4, atol=1e-5)
