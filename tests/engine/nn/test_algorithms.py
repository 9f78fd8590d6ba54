"""Every algorithm as it is trained: the change of reference files, forward and gradients against the dense form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from lorapipe_engine.delta import dense_delta  # noqa: E402
from lorapipe_engine.errors import ConfigError, InputError  # noqa: E402
from lorapipe_engine.files.tensorfile import open_tensors  # noqa: E402
from lorapipe_engine.nn.adapters.lokr import Lokr, split  # noqa: E402
from lorapipe_engine.nn.adapters.oft import Rotation  # noqa: E402
from lorapipe_engine.nn.base import NO_DROPOUT, Adapter, Dropouts, Size, adapter_class  # noqa: E402
from lorapipe_engine.nn.factored import Factored  # noqa: E402
from lorapipe_engine.nn.quantize import quantize  # noqa: E402

pytestmark = pytest.mark.torch

DATA = Path(__file__).parents[2] / "data" / "networks"
# Read and merged here, and not trained; norms have layers of their own.
PLAIN = [path for path in sorted(DATA.glob("*.safetensors")) if path.stem not in ("glora", "norm")]
NAMES = {"locon": "lora", "dora": "lora", "diag": "oft", "kohya": "oft"}
LAYERS = ("linear", "conv3x3", "conv1x1")


def base_layer(weight: Any, bias: Any, layer: str) -> nn.Module:
    module: nn.Module
    if weight.dim() == 2:
        module = nn.Linear(weight.shape[1], weight.shape[0])
    else:
        module = nn.Conv2d(
            weight.shape[1], weight.shape[0], weight.shape[2], padding=1 if layer == "conv3x3" else 0
        )
    module.load_state_dict({"weight": weight, "bias": bias})
    return module


def read(path: Path, layer: str) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """The frozen layer, the file's tensors by suffix, and all that the file has."""
    with open_tensors(path) as file:
        every = {name: torch.from_numpy(np.array(file.read(name))) for name in file.tensors}
    prefix = f"{'oft' if path.stem == 'kohya_oft' else 'lora'}_unet_{layer}."
    own = {name.removeprefix(prefix): tensor for name, tensor in every.items() if name.startswith(prefix)}
    return base_layer(every[f"base.{layer}.weight"], every[f"base.{layer}.bias"], layer), own, every


def kind_of(path: Path) -> type[Adapter]:
    name = path.stem.partition("_")[0]
    return adapter_class(NAMES.get(name, name))


def adapter_of(path: Path, base: nn.Module, tensors: dict[str, Any]) -> Adapter:
    kind = kind_of(path)
    ranked = ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
    ranks = [len(tensors[s]) for s in ranked if s in tensors]
    size = Size(ranks[0] if ranks else 0, float(tensors.get("alpha", 0.0)))
    adapter = kind.create(base, size, NO_DROPOUT, kind.options_in(tensors))
    adapter.load(tensors)
    return adapter


def inputs(base: nn.Module, dtype: Any = torch.float32) -> Any:
    torch.manual_seed(0)
    is_conv = isinstance(base, nn.Conv2d)
    shape = (3, base.in_channels, 5, 6) if is_conv else (3, 7, base.in_features)
    return torch.randn(*shape, dtype=dtype)


def dense(base: Any, x: Any, change: Any, bias_change: Any = None) -> Any:
    """The layer with ``change`` added to its weight, and ``bias_change`` to its bias."""
    weight, bias = base.weight + change, base.bias if bias_change is None else base.bias + bias_change
    if isinstance(base, nn.Conv2d):
        return F.conv2d(x, weight, bias, base.stride, base.padding)
    return F.linear(x, weight, bias)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_change_forward_and_file_are_the_references(path: Path, layer: str) -> None:
    base, tensors, every = read(path, layer)
    adapter = adapter_of(path, base, tensors).eval()
    x = inputs(base)
    for multiplier, ending in ((1.0, ""), (0.7, ".m0.7")):
        adapter.multiplier = multiplier
        stored = {s: t.detach().numpy() for s, t in tensors.items()}
        plain = base.weight.detach().numpy(), base.bias.detach().numpy()
        rule = dense_delta(stored, *plain, multiplier)
        change = torch.from_numpy(rule.weight).float()
        if path.stem.endswith("rescaled") and multiplier != 1:  # the references have none at a lower strength
            assert f"{path.stem}.{layer}.delta{ending}" not in every
        else:
            wanted = every[f"{path.stem}.{layer}.delta{ending}"]
            loose = 2e-5 if "oft" in path.stem else 1e-5
            torch.testing.assert_close(change, wanted, rtol=0, atol=loose * float(wanted.abs().max()))
        found = adapter.delta_at(multiplier)
        torch.testing.assert_close(found, change, rtol=0, atol=1e-5 * float(change.abs().max()))
        biases = None
        if rule.bias is not None:
            biases = every[f"{path.stem}.{layer}.delta_b{ending}"]
            own = adapter.bias_delta()
            assert own is not None
            torch.testing.assert_close(own * multiplier, biases)
        with torch.no_grad():
            torch.testing.assert_close(adapter(x), dense(base, x, change, biases), rtol=1e-4, atol=1e-4)
    stored = adapter.file_tensors()
    assert stored.keys() == tensors.keys()
    for suffix, tensor in tensors.items():
        assert stored[suffix].shape == tensor.shape, suffix
        assert torch.equal(stored[suffix].detach().float(), tensor.float()) or suffix == "alpha"
    again = dense_delta({s: t.detach().numpy() for s, t in stored.items()}, base.weight.detach().numpy())
    expected = every[f"{path.stem}.{layer}.delta"].numpy()
    np.testing.assert_allclose(again.weight, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_gradients_are_those_of_the_dense_form(path: Path, layer: str) -> None:
    """In float64, also of the input; the norm and what scales it too."""
    base, tensors, _ = read(path, layer)
    adapter = adapter_of(path, base, tensors).double()
    adapter.train(path.stem != "dylora")  # of which a part is trained at a time
    grads = []
    for by_delta in (False, True):
        x = inputs(base, torch.float64).requires_grad_()
        adapter.zero_grad()
        # The delta rounds the frozen weight to float32, which these are anyway.
        wanted = dense(adapter.base, x, adapter.delta(), adapter.bias_delta())
        out = wanted if by_delta else adapter(x)
        out.square().mean().backward()
        grads.append([x.grad, *(getattr(adapter, role).grad for role in adapter.roles)])
    for own, other in zip(*grads, strict=True):
        assert float(own.abs().max()) > 0
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        # Under magnitudes it is the inner change that is measured and scaled; rotations only grow smaller.
        change = adapter.inner_delta if isinstance(adapter, Factored) else adapter.delta
        before, norm = change().clone(), adapter.change_norm()
        torch.testing.assert_close(norm, before.norm(), rtol=1e-6, atol=0)
        adapter.scale_(torch.tensor(0.3))
        if isinstance(adapter, Rotation):
            torch.testing.assert_close(change().norm(), 0.3 * norm, rtol=1e-3, atol=0)
        else:
            torch.testing.assert_close(change(), 0.3 * before, rtol=1e-6, atol=1e-12)


# Arguments and rank as the reference files were made with.
MADE = {
    "loha": (4, {}),
    "loha_tucker": (4, {"use_tucker": "True"}),
    "lokr_auto": (2, {}),
    "lokr_factor": (4, {"factor": "2"}),
    "lokr_factor_tucker": (4, {"factor": "2", "use_cp": "true"}),
    "lokr_full_matrix": (4, {"factor": "2", "full_matrix": "1"}),
    "lokr_decompose_both": (1, {"decompose_both": "True"}),
    "lokr_unbalanced": (4, {"factor": "2", "unbalanced_factorization": "True"}),
    "ia3_in": (0, {"train_on_input": "True"}),
    "ia3_out": (0, {}),
    "lora": (4, {}),
    "locon": (4, {}),
    "locon_rslora": (4, {}),
    "locon_scalar": (4, {"use_scalar": "True"}),
    "locon_tucker": (4, {"use_tucker": "True"}),
    "dylora": (4, {"unit": "2"}),
    "full": (0, {}),
    "dora_in": (4, {"dora_wd": "True"}),
    "dora_out": (4, {"dora_wd": "True", "wd_on_output": "True"}),
    "dora_out_tucker": (4, {"dora_wd": "True", "wd_on_out": "True", "use_tucker": "True"}),
    "loha_dora_out": (4, {"dora_wd": "True", "wd_on_output": "True"}),
    "lokr_dora_out": (4, {"dora_wd": "True", "wd_on_output": "True", "factor": "2"}),
    "kohya_oft": (4, {"constraint": "0.05"}),
    "diag_oft": (4, {}),
    "diag_oft_constraint": (4, {"constraint": "0.02"}),
    "diag_oft_rescaled": (4, {"rescaled": "True"}),
    "boft": (10, {}),
    "boft_rescaled": (10, {"rescaled": "True"}),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("path", PLAIN, ids=lambda path: path.stem)
def test_fresh_ones_have_the_shapes_of_the_references_and_change_nothing(path: Path, layer: str) -> None:
    base, tensors, _ = read(path, layer)
    kind = kind_of(path)
    rank, words = MADE[path.stem]
    if path.stem.startswith("boft") and layer == "linear":
        rank = 4
    options = {name: kind.arguments[name](text) for name, text in words.items()}
    torch.manual_seed(0)
    adapter = kind.create(base, Size(rank, 2.5), NO_DROPOUT, options)
    found = {suffix: tuple(tensor.shape) for suffix, tensor in adapter.file_tensors().items()}
    assert found == {suffix: tuple(tensor.shape) for suffix, tensor in tensors.items()}
    values = sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    assert kind.count(tuple(base.weight.shape), Size(rank, 2.5), options) == values
    x = inputs(base)
    torch.testing.assert_close(adapter(x), base(x))
    adapter(x).square().mean().backward()
    assert any(float(getattr(adapter, role).grad.abs().max()) > 0 for role in adapter.roles)


@pytest.mark.parametrize(
    "path",
    [p for p in PLAIN if p.stem.startswith(("loha", "lokr", "full")) and "dora" not in p.stem],
    ids=lambda path: path.stem,
)
@pytest.mark.parametrize("layer", ["linear", "conv3x3"])
def test_rows_and_whole_changes_are_dropped(path: Path, layer: str) -> None:
    base, tensors, _ = read(path, layer)
    adapter = adapter_of(path, base, tensors)
    x = inputs(base)
    change = (adapter(x) - base(x)).detach()
    axis = 1 if isinstance(base, nn.Conv2d) else -1
    adapter.dropouts = Dropouts(rank=0.5)
    torch.manual_seed(0)
    some = (adapter(x) - base(x)).detach()
    kept = (some.abs() > 1e-5).any(dim=tuple(d for d in range(x.dim()) if d != axis % x.dim()))
    assert 0 < int(kept.sum()) < len(kept)
    shape = [1] * x.dim()
    shape[axis] = len(kept)
    torch.testing.assert_close(some, change * kept.view(shape), rtol=1e-3, atol=1e-4)
    adapter.dropouts = Dropouts(module=1.0)
    torch.testing.assert_close(adapter(x), base(x))
    adapter.eval()
    torch.testing.assert_close((adapter(x) - base(x)).detach(), change, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("p", [0.5, 0.999999])
@pytest.mark.parametrize(
    "path",
    [DATA / f"{stem}.safetensors" for stem in ("loha", "lokr_factor", "full")],
    ids=lambda path: path.stem,
)
@pytest.mark.parametrize("layer", ["linear", "conv3x3"])
def test_rows_that_are_kept_are_divided_by_their_share(path: Path, layer: str, p: float) -> None:
    """LyCORIS' ``rank_dropout_scale``: the mask of the rows is divided by its mean. Where no row is kept that is 0 / 0
    there, and nothing here."""
    base, tensors, _ = read(path, layer)
    adapter = adapter_of(path, base, tensors)
    x = inputs(base)
    change = (adapter(x) - base(x)).detach()
    shape = [1] * x.dim()
    shape[1 if isinstance(base, nn.Conv2d) else -1] = len(base.weight)
    adapter.dropouts = Dropouts(rank=p, rank_scale=True)
    torch.manual_seed(0)
    mask = (torch.rand(len(base.weight)) >= p).float()
    assert bool(mask.any()) == (p == 0.5)
    wanted = mask / mask.mean() if bool(mask.any()) else mask
    torch.manual_seed(0)
    torch.testing.assert_close(adapter(x) - base(x), change * wanted.view(shape), rtol=1e-3, atol=1e-4)


def test_a_large_loha_is_computed_as_a_dense_weight() -> None:
    loha = adapter_class("loha")
    short, full = (loha.create(nn.Linear(40, 36), Size(r, 2.0), NO_DROPOUT, {}) for r in (4, 5))
    assert (short.is_short, full.is_short) == (True, False)  # type: ignore[attr-defined]
    for adapter in (short, full):
        nn.init.normal_(adapter.w2_a)
        x = torch.randn(2, 3, 40)
        torch.testing.assert_close(adapter(x), dense(adapter.base, x, adapter.delta()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "factor", "found"),
    [
        (320, -1, (16, 20)),
        (320, 8, (8, 40)),
        (320, 40, (8, 40)),
        (1280, 24, (20, 64)),
        (127, -1, (1, 127)),
        (12, 5, (3, 4)),
        (250, -1, (10, 25)),
    ],
)
def test_splits_of_a_side(size: int, factor: int, found: tuple[int, int]) -> None:
    assert split(size, factor) == found


def test_factors_of_another_layer_are_refused() -> None:
    with pytest.raises(ConfigError, match="do not fit a layer of"):
        Lokr.create(nn.Linear(24, 16), Size(4, 1.0), NO_DROPOUT, {"shapes": {"w1": (4, 4), "w2": (4, 4)}})
    ia3 = adapter_class("ia3").create(nn.Linear(24, 16), Size(0, 0.0), NO_DROPOUT, {})
    with pytest.raises(InputError, match=r"weight has shape \(24,\), the model's layer needs \(16,\)"):
        ia3.load({"weight": torch.ones(24), "on_input": torch.tensor(0)})


def test_ia3_measures_the_quantized_weight() -> None:
    model = nn.Sequential(nn.Linear(24, 16))
    weight = model[0].weight.detach().clone()
    quantize(model, "int8")
    ia3 = adapter_class("ia3").create(model[0], Size(0, 0.0), NO_DROPOUT, {})
    nn.init.constant_(ia3.w, 0.5)
    assert float(ia3.change_norm()) == pytest.approx(0.5 * float(weight.norm()), rel=0.01)
