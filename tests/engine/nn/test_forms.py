"""Algorithms whose change equals a LoRA's are trained in the products of fused blocks: same results, same gradients."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest

torch = pytest.importorskip("torch")

pytest.importorskip("diffusers")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from lorapipe_engine.nn.attach import Kind, Network, NetworkPlan, Target, attach  # noqa: E402
from lorapipe_engine.nn.base import NO_DROPOUT, Dropouts, Size, adapter_class  # noqa: E402
from lorapipe_engine.nn.fused import ops  # noqa: E402
from lorapipe_engine.nn.fused.forms import Form  # noqa: E402
from lorapipe_engine.nn.fused.packed import Packed, Packs  # noqa: E402
from lorapipe_engine.nn.fused.unet import fuse  # noqa: E402

from .test_fused import apart, make_unet  # noqa: E402

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
    "dora by inputs": ("lora", {"dora_wd": True}),
    "dora by outputs": ("lora", {"dora_wd": True, "wd_on_output": True}),
    "dora, learned factor": ("lora", {"dora_wd": True, "use_scalar": True}),
    "loha by inputs": ("loha", {"dora_wd": True}),
    "loha by outputs": ("loha", {"dora_wd": True, "wd_on_output": True}),
    "lokr by inputs": ("lokr", {"factor": 4, "dora_wd": True}),
    "ia3 by outputs": ("ia3", {}),
    "ia3 by inputs": ("ia3", {"train_on_input": True}),
    "lokr by outputs": ("lokr", {"factor": 4, "dora_wd": True, "wd_on_output": True}),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_form_is_the_algorithm(name: str) -> None:
    algorithm, options = KINDS[name]
    own = run(algorithm, options, fused=False, times=2, dropouts=Dropouts())
    fused = run(algorithm, options, fused=True, times=2, dropouts=Dropouts())
    assert fused[2] == 3
    for one, other in zip(fused[:2], own[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6 * float(other.abs().max()))


@pytest.mark.parametrize("name", ["lokr", "loha", "dora by inputs", "ia3 by outputs"])
def test_what_has_no_form_runs_its_own_forward(name: str) -> None:
    algorithm, options = KINDS[name]
    assert run(algorithm, options, fused=True, times=1, dropouts=Dropouts(module=0.5))[2] == 0


def test_a_form_that_costs_more_than_the_base_is_not_taken() -> None:
    assert run("lokr", {"factor": 4, "full_matrix": True}, fused=True, times=1, dropouts=Dropouts())[2] == 0
    assert run("lokr", {"factor": 4}, fused=True, times=1, dropouts=Dropouts(), rank=5)[2] == 0


def passes(
    options: Mapping[str, Any],
    *,
    fused: bool,
    checkpointed: bool = False,
    linear: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """What a UNet answers, and the gradients of its network and of the text."""
    unet = make_unet(linear, False).bfloat16().to(dtype)
    classes = [module for module in unet.modules() if type(module).__name__ == "Transformer2DModel"]
    layers = {id(child) for root in classes for child in root.modules() if not [*child.children()]}
    targets = [
        Target("unet", p, m) for p, m in unet.named_modules() if id(m) in layers and hasattr(m, "bias")
    ]
    targets = [target for target in targets if isinstance(target.module, nn.Linear | nn.Conv2d)]
    torch.manual_seed(1)
    network = attach([unet], targets, NetworkPlan(rank=5, alpha=3, kind=Kind("lora", options)))
    with torch.no_grad():
        for adapter in network.adapters.values():
            for role in adapter.roles:
                getattr(adapter, role).add_(torch.randn_like(getattr(adapter, role)) * 0.05)
    network.train()
    if checkpointed:
        unet.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, preserve_rng_state=False))
        unet.train()
    packs = fuse(unet) if fused else None
    if packs is not None:
        packs.refresh()
        assert all(isinstance(row, Form) for pack in packs.packs for row in pack.layers)
        assert sum(len(pack.layers) for pack in packs.packs) == len(targets)
    torch.manual_seed(2)
    noisy, text = (torch.randn(*shape).bfloat16().to(dtype) for shape in ((2, 4, 16, 12), (2, 7, 24)))
    text.requires_grad_()
    for _ in range(2):
        out = unet(noisy, torch.tensor([3, 500]), text, return_dict=False)[0]
        (out.float().square().mean() * 100).backward()
        if packs is not None:
            packs.finish()
    return [out.detach(), network.groups["unet"].grad, text.grad]


@pytest.mark.parametrize("by_output", [False, True])
@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_fused_unet_under_magnitudes_is_the_unet(by_output: bool, linear: bool, checkpointed: bool) -> None:
    options = {"dora_wd": True, "wd_on_output": by_output}
    own = passes(options, fused=False, linear=linear)
    fused = passes(options, fused=True, linear=linear, checkpointed=checkpointed)
    assert max(apart(a, b) for a, b in zip(fused, own, strict=True)) < 1e-5


@pytest.mark.parametrize("by_output", [False, True])
def test_half_precision_under_magnitudes_is_as_exact_as_the_layers_own(by_output: bool) -> None:
    options = {"dora_wd": True, "wd_on_output": by_output}
    exact = passes(options, fused=False)
    own, fused = (passes(options, fused=choice, dtype=torch.bfloat16) for choice in (False, True))
    for wanted, one, other in zip(exact, own, fused, strict=True):
        assert apart(other.float(), wanted) < apart(one.float(), wanted) * 1.15


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "ia3"])
@pytest.mark.parametrize("by_output", [False, True])
@pytest.mark.parametrize(("count", "reads"), [(1, True), (3, True), (2, False)])
def test_products_under_magnitudes_have_the_gradients_of_the_dense_form(
    algorithm: str, by_output: bool, count: int, reads: bool
) -> None:
    """In float64. Layers of one pack have ratios of their own; ``reads``: their input has a gradient too."""
    torch.manual_seed(3)
    options = {"dora_wd": True, "wd_on_output": by_output, **({"factor": 4} if algorithm == "lokr" else {})}
    if algorithm == "ia3":
        options = {"train_on_input": not by_output}
    kind = adapter_class(algorithm)
    bases = [nn.Linear(WIDE, NARROW + 16 * index) for index in range(count)]
    adapters = [kind.create(base, Size(2, 3.0), NO_DROPOUT, options).double() for base in bases]
    for adapter in adapters:
        for role in adapter.roles:
            own = getattr(adapter, role)
            own.data.add_(torch.randn_like(own) * 0.3)
            own.grad = torch.zeros_like(own)
    packs = Packs([Packed(adapters)])
    packs.refresh()
    x, wide = torch.randn(9, WIDE, dtype=torch.float64), sum(len(base.weight) for base in bases)
    residual, factor = (torch.randn(9, wide, dtype=torch.float64) for _ in range(2))
    found: list[Any] = []
    for dense in (False, True):
        given = [x.clone().requires_grad_(reads), residual.clone().requires_grad_()]
        if dense:
            changed = [(a.weight + a.delta(), a.bias) for a in adapters]
            parts = [F.linear(given[0], weight, bias) for weight, bias in changed]
            out = torch.cat(parts, dim=1) + given[1]
        else:
            out = ops.linear(given[0], packs.packs[0], given[1])
        (out * factor).square().sum().backward()
        if not dense:
            packs.finish()
        rows = [getattr(a, role) for a in adapters for role in a.roles]
        found.append(
            [out.detach(), *(v.grad for v in given if v.requires_grad), *(r.grad.clone() for r in rows)]
        )
        for row in rows:
            row.grad.zero_()
    for own, wanted in zip(*found, strict=True):
        assert float(wanted.abs().max()) > 0
        torch.testing.assert_close(own, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))


@pytest.mark.parametrize("by_output", [False, True])
def test_small_magnitudes_have_an_effect_in_packed_half_precision(by_output: bool) -> None:
    """1.0005 rounds to 1 in bf16. Of what it adds to the result no less comes through than the layer's own forward
    has, and the results are those of the exact one but for rounding."""
    torch.manual_seed(5)
    base = nn.Linear(256, 192).bfloat16()
    adapter = adapter_class("lora").create(
        base, Size(4, 4.0), NO_DROPOUT, {"dora_wd": True, "wd_on_output": by_output}
    )
    with torch.no_grad():
        adapter.magnitude.mul_(1.0005)
        adapter.lora_up.normal_(std=0.02)
    for role in adapter.roles:
        getattr(adapter, role).grad = torch.zeros_like(getattr(adapter, role))
    x = torch.randn(400, 256).bfloat16()
    with torch.no_grad():
        weight = base.weight.double()
        exact = F.linear(x.double(), weight + adapter.double().delta(), base.bias.double())
        adapter.float()
        base.bfloat16()
        plain = F.linear(x.double(), weight, base.bias.double())
        own = adapter(x).double()
    packs = Packs([Packed([adapter])])
    packs.refresh()
    packed = ops.linear(x, packs.packs[0]).detach().double()
    share = [
        float(((out - plain) * (exact - plain)).sum() / (exact - plain).square().sum())
        for out in (own, packed)
    ]
    assert share[1] > share[0] - 0.02
    assert apart(packed, exact) < max(apart(own, exact), apart(exact.bfloat16().double(), exact)) * 1.05


@pytest.mark.parametrize("name", ["lokr", "dora by inputs", "dora by outputs", "ia3 by outputs"])
def test_with_the_network_off_blocks_of_forms_give_the_base(name: str) -> None:
    unet = make_unet(True, False)
    algorithm, options = KINDS[name]
    noisy, text = torch.randn(2, 4, 16, 12), torch.randn(2, 7, 24)
    with torch.no_grad():
        wanted = unet(noisy, torch.tensor([3, 500]), text, return_dict=False)[0]
    targets = [
        Target("unet", p, m) for p, m in unet.named_modules() if isinstance(m, nn.Linear) and "blocks" in p
    ]
    targets = [target for target in targets if "attentions" in target.name]
    network = attach([unet], targets, NetworkPlan(rank=2, alpha=3, kind=Kind(algorithm, options)))
    for adapter in network.adapters.values():
        for role in adapter.roles:
            nn.init.normal_(getattr(adapter, role), std=0.3)
    fuse(unet).refresh()
    with torch.no_grad(), network.off():
        out = unet(noisy, torch.tensor([3, 500]), text, return_dict=False)[0]
    assert apart(out, wanted) < 1e-5


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
