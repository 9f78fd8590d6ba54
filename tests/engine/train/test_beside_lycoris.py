"""Files for the demo base go to lycoris-lora and back: one output in both, and training goes on. Skipped without it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lorapipe_demo")
kohya = pytest.importorskip("lycoris.kohya", reason="lycoris-lora is not installed: pip install lycoris-lora")

from torch import nn  # noqa: E402

from lorapipe_engine.command.options import build_settings  # noqa: E402
from lorapipe_engine.files.tensorfile import write_tensors  # noqa: E402
from lorapipe_engine.models.bases import demo_base  # noqa: E402
from lorapipe_engine.nn.attach import Network, attach, detach  # noqa: E402
from lorapipe_engine.settings import PARTS, NetworkSettings, TrainSettings  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from lorapipe_engine.train.network.arguments import network_plan, read_network_args  # noqa: E402
from lorapipe_engine.train.network.choice import choose_layers  # noqa: E402
from lorapipe_engine.train.network.make import make_network  # noqa: E402

pytestmark = pytest.mark.torch

# Layers are said outright: presets of these names choose others in LyCORIS 4.1.
WHOLE: dict[str, Any] = {
    "enable_conv": True,
    "unet_target_module": ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"],
    "unet_target_name": [],
    "text_encoder_target_module": ["CLIPAttention", "CLIPMLP"],
    "text_encoder_target_name": [],
    "module_algo_map": {},
    "name_algo_map": {},
    "exclude_name": [],
    "use_fnmatch": False,
}
SCALED = {
    **WHOLE,
    "unet_target_module": [],
    "unet_target_name": [".*to_k", ".*to_v", ".*ff[.]net[.]2"],
    "text_encoder_target_module": [],
    "text_encoder_target_name": [".*k_proj", ".*v_proj", ".*fc2"],
    "name_algo_map": {name: {"algo": "ia3", "train_on_input": True} for name in (".*ff[.]net[.]2", ".*fc2")},
}
OURS = "preset=full conv_dim=4 conv_alpha=2"
# Our words, LyCORIS' arguments.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "locon": ("lora", "conv_dim=4 conv_alpha=2", {"algo": "locon"}),
    "tucker": ("lora", "conv_dim=4 conv_alpha=2 use_tucker=True", {"algo": "locon", "use_tucker": True}),
    "loha": ("loha", OURS, {"algo": "loha"}),
    "lokr": ("lokr", f"{OURS} factor=4", {"algo": "lokr", "factor": 4}),
    "full": ("full", OURS, {"algo": "full"}),
    "norm": ("lora", "conv_dim=4 conv_alpha=2 train_norm=True", {"algo": "lora", "train_norm": True}),
    "dora": ("lora", "conv_dim=4 conv_alpha=2 dora_wd=True", {"dora_wd": True, "wd_on_output": False}),
    "dora, by outputs": (
        "lora",
        "conv_dim=4 conv_alpha=2 dora_wd=True wd_on_output=True",
        {"dora_wd": True, "wd_on_output": True},
    ),
    "ia3": ("ia3", "", {"algo": "ia3"}),
}


class Named(nn.Module):
    """A text encoder under the name that LyCORIS' keys have, whatever the release of transformers."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.text_model = getattr(encoder, "text_model", encoder)


@pytest.fixture(scope="module")
def family() -> Any:
    opened = open_family(
        load_base(demo_base()),
        device=torch.device("cpu"),
        dtype=torch.float32,
        max_token_length=75,
        clip_skip=None,
    )
    for root in opened.parts.values():
        root.requires_grad_(False).eval()
    return opened


@pytest.fixture
def clean(family: Any) -> Iterator[None]:
    yield
    detach(family.parts.values())


def seen(family: Any) -> Any:
    """What the base makes of a picture and a caption, (B, 4, 8, 8)."""
    torch.manual_seed(5)
    noisy, ids = torch.randn(2, 4, 8, 8), torch.randint(0, 300, (2, 77))
    states = family.text.modules["te1"](input_ids=ids).last_hidden_state
    return family.denoiser(noisy, torch.tensor([3, 500]), states, return_dict=False)[0]


def disturb(values: Iterator[Any]) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for value in values:
            value.add_(torch.randn_like(value) * 0.02)


def ours(kind: str, family: Any) -> Network:
    algorithm, words, _ = KINDS[kind]
    settings = NetworkSettings(
        algorithm=algorithm, network_dim=4, network_alpha=2.0, network_args=tuple(words.split())
    )
    args = read_network_args(settings)
    choice = choose_layers(network_plan(settings, args), args, family, family.train_parts)
    # What our preset "full" has beside the classes.
    ends = ("lora_unet_conv_in", "lora_unet_conv_out", "lora_unet_time_embedding")
    targets = [target for target in choice.targets if not target.name.startswith(ends)]
    return attach(family.parts.values(), targets, choice.plan)


def theirs(kind: str, family: Any) -> Any:
    """A network of LyCORIS over the base; take it out with ``restore``."""
    kohya.PRESET["test"] = SCALED if kind == "ia3" else WHOLE
    texts = Named(family.text.modules["te1"])
    network = kohya.create_network(
        1.0,
        4,
        2.0,
        None,
        texts,
        family.denoiser,
        preset="test",
        conv_dim=4,
        conv_alpha=2.0,
        warn_on_unmatched=False,
        **KINDS[kind][2],
    )
    network.apply_to(texts, family.denoiser, True, True)
    return network.eval()


def restore(network: Any) -> None:
    for module in network.loras:
        module.restore()


def apart(a: Any, b: Any) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("clean")
def test_lycoris_makes_the_same_of_our_file(kind: str, family: Any, tmp_path: Path) -> None:
    with torch.no_grad():
        before = seen(family)
        network = ours(kind, family)
        disturb(getattr(a, role) for a in network.adapters.values() for role in a.roles)
        wanted, path = seen(family), tmp_path / "ours.safetensors"
        write_tensors(path, {key: value.numpy() for key, value in network.file_tensors().items()}, {})
        assert apart(wanted, before) > 2e-3
        detach(family.parts.values())
        other = theirs(kind, family)
        told = other.load_weights(str(path))
        try:
            assert "unexpected keys" not in told
            assert not [key for key in told.get("missing keys", ()) if not key.endswith("scalar")]
            assert apart(seen(family), wanted) < 1e-4
        finally:
            restore(other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("clean")
def test_we_make_the_same_of_its_file_and_train_on(kind: str, family: Any, tmp_path: Path) -> None:
    other, path = theirs(kind, family), tmp_path / "theirs.safetensors"
    try:
        with torch.no_grad():
            disturb(other.parameters())
            wanted = seen(family)
        other.save_weights(str(path), torch.float32, {})
    finally:
        restore(other)
    settings = train_settings(path)
    notes: list[str] = []
    args = read_network_args(settings.network)
    network = make_network(settings, args, family, {"te1": 1e-3, "unet": 1e-3}, notes.append)
    assert not [note for note in notes if "only" in note], notes
    out = seen(family)
    assert apart(out, wanted) < 1e-4
    before = {key: value.clone() for key, value in network.state().items()}
    out.square().mean().backward()
    for group in network.groups.values():
        group.parameter.data.sub_(group.grad, alpha=0.1)
    moved = [key for key, value in network.state().items() if not torch.equal(value, before[key])]
    assert len(moved) > len(before) * 0.9


def train_settings(path: Path) -> TrainSettings:
    given = {
        "pretrained_model_name_or_path": demo_base(),
        "train_data_dir": path.parent,
        "output_dir": path.parent,
        "network_weights": path,
    }
    flags = {**{name: str(value) for name, value in given.items()}, "dim_from_weights": True}
    model, data, network, optimizer, loss, run = build_settings(PARTS, flags)[0]
    return TrainSettings(model=model, data=data, network=network, optimizer=optimizer, loss=loss, run=run)
