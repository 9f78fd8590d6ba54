"""The fused blocks compute what the libraries' own blocks compute, forward and backward."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")

from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from lorapipe_engine.models.stable_diffusion import UNET_CONV_TARGETS, UNET_TARGETS  # noqa: E402
from lorapipe_engine.networks import algorithms  # noqa: E402
from lorapipe_engine.networks.algorithms import Algorithm  # noqa: E402
from lorapipe_engine.nn import kernels  # noqa: E402
from lorapipe_engine.nn.adapters.lora import Lora  # noqa: E402
from lorapipe_engine.nn.attach import Kind, Network, NetworkPlan, Target, attach  # noqa: E402
from lorapipe_engine.nn.base import Dropouts  # noqa: E402
from lorapipe_engine.nn.fused import ops  # noqa: E402
from lorapipe_engine.nn.fused.packed import Packed, Packs  # noqa: E402
from lorapipe_engine.nn.fused.unet import fuse  # noqa: E402
from lorapipe_engine.train.families.base import find_targets  # noqa: E402

pytestmark = pytest.mark.torch


def make_unet(linear: bool, added: bool) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    extra: dict[str, Any] = {}
    if added:
        extra = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
        extra["projection_class_embeddings_input_dim"] = 6 * 8 + 16
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=8,
        use_linear_projection=linear,
        layers_per_block=1,
        **extra,
    )
    return unet.requires_grad_(False).eval()


class Squashed(Lora):
    """A subclass with a forward of its own: its change is squashed, which no packed product is."""

    def forward(self, x: Any) -> Any:
        out = self.base(x)
        return out + torch.tanh(10 * (super().forward(x) - out))


SQUASHED = Algorithm(
    name="squashed",
    title="Squashed LoRA",
    marks=frozenset({"squashed"}),
    rule="lorapipe_engine.delta.lora:LORA",
    adapter=f"{__name__}:Squashed",
)


def make_network(
    unet: Any,
    conv: bool = False,
    dropouts: Dropouts | None = None,
    squashed: Callable[[str], bool] | None = None,
) -> Network:
    """``squashed``: which modules, by name, are of the subclass."""
    torch.manual_seed(1)
    classes = UNET_TARGETS + (UNET_CONV_TARGETS["unet"] if conv else ())
    targets = [Target("unet", path, module) for path, module in find_targets(unet, classes)]
    kinds = {target.name: Kind("squashed") for target in targets if squashed and squashed(target.name)}
    plan = NetworkPlan(
        rank=5, alpha=3, conv_rank=2 if conv else None, dropouts=dropouts or Dropouts(), kinds=kinds
    )
    network = attach([unet], targets, plan)
    assert sum(type(adapter) is Squashed for adapter in network.adapters.values()) == len(kinds)
    for adapter in network.adapters.values():
        assert isinstance(adapter, Lora)
        nn.init.normal_(adapter.lora_up, std=0.05)
    return network


def passes(
    linear: bool,
    *,
    added: bool = False,
    conv: bool = False,
    fused: bool,
    checkpointed: bool = False,
    times: int = 1,
    size: tuple[int, int] = (16, 12),
    dropouts: Dropouts | None = None,
    squashed: Callable[[str], bool] | None = None,
    device: str = "cpu",
) -> list[Any]:
    """Prediction, and gradients of network, text and pooled text."""
    unet = make_unet(linear, added).to(device)
    network = make_network(unet, conv, dropouts, squashed)
    if dropouts:
        network.train()
    if checkpointed:
        again = {"use_reentrant": False, "preserve_rng_state": dropouts is not None}
        unet.enable_gradient_checkpointing(partial(checkpoint, **again))
        unet.train()
    packs = fuse(unet) if fused else None
    if packs is not None:
        packs.refresh()
    torch.manual_seed(2)
    noisy, text = torch.randn(2, 4, *size).to(device), torch.randn(2, 7, 24).to(device).requires_grad_()
    pooled = torch.randn(2, 16).to(device).requires_grad_()
    more = {"text_embeds": pooled, "time_ids": (torch.rand(2, 6) * 100).to(device)} if added else None
    steps = torch.tensor([3, 500], device=device)
    for _ in range(times):
        out = unet(noisy, steps, text, added_cond_kwargs=more, return_dict=False)[0]
        (out.square().mean() * 100).backward()
        if packs is not None:
            packs.finish()
    return [out.detach(), network.groups["unet"].grad, text.grad, *([pooled.grad] if added else [])]


def one_pass(unet: Any, network: Network, packs: Packs | None) -> list[Any]:
    """Prediction, and gradients of the network."""
    torch.manual_seed(2)
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 500]), torch.randn(2, 7, 24)
    out = unet(*inputs, return_dict=False)[0]
    out.square().mean().backward()
    if packs is not None:
        packs.finish()
    return [out.detach(), network.groups["unet"].grad]


def apart(a: Any, b: Any) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("checkpointed", [True, False])
def test_fused_unet_is_the_unet(linear: bool, checkpointed: bool) -> None:
    own = passes(linear, added=True, fused=False)
    fused = passes(linear, added=True, fused=True, checkpointed=checkpointed)
    assert max(apart(a, b) for a, b in zip(fused, own, strict=True)) < 1e-5


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often norms and activations of rows are computed."""
    found: Counter[str] = Counter()

    def counted(name: str, own: Callable[..., Any], *args: Any) -> Any:
        found[name] += 1
        return own(*args)

    for name in ("layer_norm", "activate"):
        monkeypatch.setattr(kernels, name, partial(counted, name, getattr(kernels, name)))
    return found


def test_a_block_that_is_computed_again_ends_before_its_second_layer(calls: Counter[str]) -> None:
    passes(True, fused=True)
    once = dict(calls)
    calls.clear()
    passes(True, fused=True, checkpointed=True)
    assert calls["layer_norm"] == 2 * once["layer_norm"]
    assert calls["activate"] == once["activate"]


def test_a_block_that_is_computed_again_drops_the_same() -> None:
    dropouts = Dropouts(element=0.3, rank=0.2)
    once, again = (
        passes(True, fused=True, dropouts=dropouts, checkpointed=choice) for choice in (False, True)
    )
    assert max(apart(a, b) for a, b in zip(again, once, strict=True)) < 1e-5
    assert apart(once[1], passes(True, fused=True)[1]) > 0.1


@pytest.mark.parametrize("checkpointed", [True, False])
def test_blocks_with_a_network_on_convolutions_are_fused_too(checkpointed: bool) -> None:
    own = passes(True, conv=True, fused=False)
    fused = passes(True, conv=True, fused=True, checkpointed=checkpointed)
    assert max(apart(a, b) for a, b in zip(fused, own, strict=True)) < 1e-5


# Modules that are not packed: all of them, some layers of every pack, and both projections of a transformer.
OWN: dict[str, Callable[[str], bool]] = {
    "all": lambda _name: True,
    "keys and the second layer": lambda name: name.endswith(("to_k", "net.2")),
    "projections and the first layer": lambda name: name.endswith(("proj_in", "proj_out", "net.0.proj")),
}


@pytest.fixture
def subclass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The subclass stands in the table of algorithms."""
    monkeypatch.setattr(algorithms, "ALGORITHMS", (*algorithms.ALGORITHMS, SQUASHED))


@pytest.mark.usefixtures("subclass")
@pytest.mark.parametrize("which", OWN)
@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_subclass_is_trained_by_its_own_forward(which: str, linear: bool, checkpointed: bool) -> None:
    own = passes(linear, fused=False, squashed=OWN[which])
    fused = passes(linear, fused=True, squashed=OWN[which], checkpointed=checkpointed)
    assert max(apart(a, b) for a, b in zip(fused, own, strict=True)) < 1e-5
    # The forward counts: without it prediction and gradients are others.
    assert min(apart(a, b) for a, b in zip(own[:2], passes(linear, fused=True)[:2], strict=True)) > 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.usefixtures("subclass")
@pytest.mark.parametrize("which", OWN)
@pytest.mark.parametrize("checkpointed", [True, False])
def test_a_subclass_is_trained_by_its_own_forward_on_a_card(
    which: str, checkpointed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    own = passes(True, fused=False, squashed=OWN[which], device="cuda")
    fused = passes(True, fused=True, squashed=OWN[which], checkpointed=checkpointed, device="cuda")
    assert max(apart(a, b) for a, b in zip(fused, own, strict=True)) < 1e-4


def test_layers_without_an_adapter_stay_in_a_fused_block() -> None:
    """A network on keys and values alone: the other layers are the frozen ones."""

    def found(fused: bool) -> list[Any]:
        unet = make_unet(True, False)
        targets = [
            Target("unet", path, module)
            for path, module in find_targets(unet, UNET_TARGETS)
            if path.endswith(("to_k", "to_v"))
        ]
        torch.manual_seed(1)
        network = attach([unet], targets, NetworkPlan(rank=4, alpha=4))
        for adapter in network.adapters.values():
            assert isinstance(adapter, Lora)
            nn.init.normal_(adapter.lora_up, std=0.05)
        packs = fuse(unet) if fused else None
        if packs is not None:
            # Keys and values of the context are packed together, those of the picture one by one.
            sizes = Counter(len(pack.layers) for pack in packs.packs)
            assert sizes[1] == 2 * sizes[2] > 0
            packs.refresh()
        return one_pass(unet, network, packs)

    own, fused = found(False), found(True)
    assert max(apart(a, b) for a, b in zip(fused, own, strict=True)) < 1e-5


@pytest.mark.parametrize("kinds", [(nn.Linear,), (nn.Linear, nn.Conv2d), ()])
@pytest.mark.parametrize("inside", ["attentions", "block"])
@pytest.mark.parametrize("bias", [True, False])
def test_trained_norms_are_not_passed_by(kinds: tuple[type[nn.Module], ...], inside: str, bias: bool) -> None:
    """With layers beside them, and alone; without a bias of their own too."""

    def found(fused: bool) -> list[Any]:
        unet = make_unet(True, False)
        if not bias:
            for module in unet.modules():
                if isinstance(module, nn.LayerNorm):
                    module.bias = None
        targets = [
            Target("unet", path, module)
            for path, module in unet.named_modules()
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm, *kinds)) and inside in path
        ]
        norms = {
            row.name: Kind("norm") for row in targets if isinstance(row.module, nn.LayerNorm | nn.GroupNorm)
        }
        torch.manual_seed(1)
        network = attach([unet], targets, NetworkPlan(rank=4, alpha=4, conv_rank=2, kinds=norms))
        for adapter in network.adapters.values():
            for role in adapter.roles:
                nn.init.normal_(getattr(adapter, role), std=0.1)
        packs = fuse(unet) if fused else None
        if packs is not None:
            packs.refresh()
        return one_pass(unet, network, packs)

    own, fused = found(False), found(True)
    assert max(apart(a, b) for a, b in zip(fused, own, strict=True)) < 1e-5


def test_with_the_network_off_trained_norms_are_the_base() -> None:
    unet = make_unet(True, False)
    torch.manual_seed(2)
    noisy, text = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 24).requires_grad_()
    answer = partial(unet, noisy, torch.tensor([3]), text, return_dict=False)
    base = answer()[0].detach()
    targets = [
        Target("unet", path, module)
        for path, module in unet.named_modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm)
    ]
    network = attach([unet], targets, NetworkPlan(rank=4, alpha=4, kind=Kind("norm")))
    for adapter in network.adapters.values():
        for role in adapter.roles:
            nn.init.normal_(getattr(adapter, role), std=0.1)
    fuse(unet).refresh()
    with network.off():
        assert apart(answer()[0].detach(), base) < 1e-5
    with_it = answer()[0].detach()
    assert apart(with_it, base) > 1e-3
    # Another strength than the one that is trained at runs the norms' own forward.
    with network.scaled(0.5):
        half = answer()[0].detach()
    assert 0.1 < apart(half, base) / apart(with_it, base) < 0.9


def test_gradients_of_two_passes_are_summed() -> None:
    one, two = (passes(True, fused=True, times=times) for times in (1, 2))
    assert apart(two[1], 2 * one[1]) < 1e-6


def test_a_small_change_survives_half_precision() -> None:
    """y = [x | xAᵀ][W | sB]ᵀ in bf16 keeps a change that a merged bf16 weight would lose."""
    torch.manual_seed(0)
    base = nn.Linear(64, 64).to(torch.bfloat16)
    layer = Lora(base, 4, 4.0)
    nn.init.normal_(layer.lora_up, std=1e-4)
    pack = Packed([layer])
    for target, source in ((pack.ups[0], layer.lora_up), (pack.downs[0], layer.lora_down)):
        target.copy_(source.detach())
    x = torch.randn(512, 64).to(torch.bfloat16)
    frozen = base.weight.double()
    exact = x.double() @ (layer.lora_up.double() @ layer.lora_down.double()).mT
    joined = torch.cat([x, x @ pack.down.mT], dim=1).double() @ pack.joined.double().mT
    merged = x.double() @ (frozen + layer.delta()).to(torch.bfloat16).double().mT
    without = x.double() @ frozen.mT
    assert apart(joined - without, exact) < 0.01
    assert apart(merged - without, exact) > 0.5


def test_dropouts_leave_the_mean_and_zero_at_probability_one() -> None:
    def hidden(dropouts: Dropouts) -> Any:
        layer = Lora(nn.Linear(8, 8), 4, 4.0, dropouts)
        return Packed([layer]).mask(4000, 40)

    torch.manual_seed(0)
    assert hidden(Dropouts()) is None
    for kind in ("element", "rank"):
        mask = hidden(Dropouts(**{kind: 0.25}))[:, :4]
        assert abs(float(mask.mean()) - 1) < 0.1
        assert 0.15 < float((mask == 0).float().mean()) < 0.35
    whole = hidden(Dropouts(rank=0.5))[:, :4].view(40, 100, 4)
    assert bool((whole == whole[:, :1]).all())  # a channel is dropped for all rows of a picture
    assert float(hidden(Dropouts(module=1.0))[:, :4].abs().sum()) == 0
    plain, scaled = (hidden(Dropouts(rank=0.5, rank_scale=choice))[:, :4] for choice in (False, True))
    assert set(plain.unique().tolist()) == {0.0, 1.0}
    means = scaled.view(40, 100, 4).mean(dim=2)
    assert bool((((means - 1).abs() < 1e-6) | (means == 0)).all())


def test_drawing_uses_the_blocks_own_way() -> None:
    unet = make_unet(True, False)
    make_network(unet)
    torch.manual_seed(2)
    arguments = torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 7, 24)
    with torch.no_grad():
        before = unet(*arguments, return_dict=False)[0]
        fuse(unet)
        after = unet(*arguments, return_dict=False)[0]
    assert torch.allclose(before, after, atol=1e-6)


@pytest.mark.usefixtures("subclass")
@pytest.mark.parametrize("linear", [True, False])
def test_with_the_network_off_fused_blocks_give_the_base(
    linear: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed layers, others beside them, and blocks that are computed again in a pass with gradients."""
    unet = make_unet(linear, False)
    torch.manual_seed(2)
    arguments = torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 7, 24)
    with torch.no_grad():
        base = unet(*arguments, return_dict=False)[0]
        network = make_network(unet, squashed=lambda name: name.endswith("to_k"))
        with_it = unet(*arguments, return_dict=False)[0]
        unet.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=False, preserve_rng_state=False))
        unet.train()
        packs = fuse(unet)
        packs.refresh()
        used, own = [], ops.group_norm
        monkeypatch.setattr(ops, "group_norm", lambda *a, **more: used.append(a) or own(*a, **more))
        with network.off():
            assert apart(unet(*arguments, return_dict=False)[0], base) < 1e-5
        assert len(used) > 5
        used.clear()
        assert apart(unet(*arguments, return_dict=False)[0], with_it) < 1e-5
        assert not used
    assert apart(base, with_it) > 1e-3


def test_with_the_network_off_a_fused_text_encoder_is_the_base() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=100, hidden_act="quick_gelu", **sizes)).eval()
    encoder.requires_grad_(False)
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        base = encoder(input_ids=ids).last_hidden_state
        targets = [
            Target("te1", path, module)
            for path, module in find_targets(encoder, ("CLIPAttention", "CLIPMLP"))
        ]
        network = attach([encoder], targets, NetworkPlan(rank=4, alpha=4))
        for adapter in network.adapters.values():
            nn.init.normal_(adapter.lora_up, std=0.05)  # type: ignore[arg-type]
        fuse(nn.Module(), [encoder]).refresh()
        with network.off():
            assert apart(encoder(input_ids=ids).last_hidden_state, base) < 1e-5
        assert apart(encoder(input_ids=ids).last_hidden_state, base) > 1e-3


def text_states(
    fused: bool, activation: str, checkpointed: bool, squashed: tuple[str, ...] = ()
) -> list[Any]:
    """The last but one hidden states of a text encoder, and the network's gradients. ``squashed``: ends of names of the
    layers that are of the subclass."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=100, hidden_act=activation, **sizes))
    encoder.requires_grad_(False).eval()
    targets = [
        Target("te1", path, module) for path, module in find_targets(encoder, ("CLIPAttention", "CLIPMLP"))
    ]
    torch.manual_seed(1)
    kinds = {target.name: Kind("squashed") for target in targets if target.name.endswith(squashed or ("?",))}
    network = attach([encoder], targets, NetworkPlan(rank=4, alpha=4, kinds=kinds))
    for adapter in network.adapters.values():
        assert isinstance(adapter, Lora)
        nn.init.normal_(adapter.lora_up, std=0.05)
    packs = fuse(nn.Module(), [encoder]) if fused else None
    if packs is not None:
        packs.refresh()
    if checkpointed:
        encoder.gradient_checkpointing_enable({"use_reentrant": False})
        encoder.train()
    out = encoder(input_ids=torch.arange(40).reshape(2, 20), output_hidden_states=True)
    out.hidden_states[-2].square().mean().backward()
    if packs is not None:
        packs.finish()
    return [out.hidden_states[-2].detach(), network.groups["te1"].grad]


@pytest.mark.usefixtures("subclass")
@pytest.mark.parametrize("squashed", [("q_proj", "fc2"), ("out_proj", "fc1")])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_a_subclass_is_trained_by_its_own_forward_in_a_text_encoder(
    activation: str, squashed: tuple[str, ...]
) -> None:
    own, fused = (text_states(choice, activation, True, squashed) for choice in (False, True))
    assert max(apart(a, b) for a, b in zip(fused, own, strict=True)) < 1e-5
    assert apart(own[0], text_states(True, activation, True)[0]) > 1e-3


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("checkpointed", [True, False])
def test_fused_text_encoder_is_the_text_encoder(
    activation: str, checkpointed: bool, calls: Counter[str]
) -> None:
    own, fused = (text_states(choice, activation, checkpointed) for choice in (False, True))
    assert max(apart(a, b) for a, b in zip(fused, own, strict=True)) < 1e-5
    # Three layers of two norms, two of them computed again: the last one does not matter to what is looked at.
    assert calls == {"layer_norm": 10 if checkpointed else 6, "activate": 3}


def test_kernels_that_were_compiled_before_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton is for Linux")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    assert not kernels.are_compiled()
    program = (
        "from triton.backends.compiler import GPUTarget\nfrom triton.compiler import ASTSource, compile\n"
        "from lorapipe_engine.nn.kernels.triton_norms import _group_values as kernel\n"
        "fixed = {'SHIFT': False, 'SILU': True, 'ROWS': 128, 'WIDE': 64}\n"
        "kinds = {'S': 'i32', 'C': 'i32', 'G': 'i32', 'stride_shift': 'i32'}\n"
        "signature = {n: 'constexpr' if n in fixed else kinds.get(n, '*fp32') for n in kernel.arg_names}\n"
        "fixed = {(kernel.arg_names.index(n),): v for n, v in fixed.items()}\n"
        "compile(ASTSource(kernel, signature, fixed), target=GPUTarget('cuda', 90, 32))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert kernels.are_compiled()
