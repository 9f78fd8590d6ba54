"""Memory that is known before a base is loaded: what makes it more and less, and the refusal."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("lorapipe_demo")

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_demo.scene import TRIGGER  # noqa: E402
from lorapipe_engine.command.options import build_settings  # noqa: E402
from lorapipe_engine.errors import ConfigError  # noqa: E402
from lorapipe_engine.models.bases import resolve_base  # noqa: E402
from lorapipe_engine.nn.attach import attach, detach  # noqa: E402
from lorapipe_engine.nn.fused.unet import fuse  # noqa: E402
from lorapipe_engine.settings import PARTS, NetworkSettings, TrainSettings  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.data.examples import scan  # noqa: E402
from lorapipe_engine.train.families import open_family  # noqa: E402
from lorapipe_engine.train.memory.fit import load_of, memory_line, outline_of, shapes_of  # noqa: E402
from lorapipe_engine.train.memory.model import GIB, Load, network_bytes, predict  # noqa: E402
from lorapipe_engine.train.memory.network import Row, rows_of  # noqa: E402
from lorapipe_engine.train.memory.preset import find_options  # noqa: E402
from lorapipe_engine.train.network.arguments import network_plan, read_network_args  # noqa: E402
from lorapipe_engine.train.network.choice import Choice, choose_layers  # noqa: E402

BASE = str(resolve_base("demo"))


@cache
def outlined() -> Any:
    return outline_of(BASE, torch.bfloat16)


def chosen(family: Any, words: str, dim: int = 16) -> Choice:
    """The layers of a network in the words of the command line."""
    first, *rest = words.split() or ["lora"]
    settings = NetworkSettings(
        algorithm=first, network_dim=dim, network_alpha=float(dim), network_args=tuple(rest)
    )
    args = read_network_args(settings)
    return choose_layers(network_plan(settings, args), args, family, family.train_parts)


@cache
def rows(words: str = "", dim: int = 16) -> tuple[Row, ...]:
    choice = chosen(outlined(), words, dim)
    return rows_of(outlined(), choice.targets, choice.plan)


LOAD = Load(512, 512, 2, rows(), tokens=77, text_there=True)


def gib(load: Load) -> float:
    return predict(*shapes_of(outlined()), load).gib


MORE: dict[str, dict[str, Any]] = {
    **{name: {name: value} for name, value in (("width", 576), ("height", 768), ("batch", 3))},
    **{name: {name: 154} for name in ("tokens", "context")},
    **{name: {name: True} for name in ("joined", "averaged")},
    "weight_bytes": {"weight_bytes": 4},
    "latents": {"latents": 1e6},
    "dim": {"network": rows(dim=32)},
    "norms": {"network": rows("lora train_norm=True")},
    "locon": {"network": rows("locon")},
    "full": {"network": rows("full")},
}
LESS: dict[str, dict[str, Any]] = {
    "checkpointing": {"checkpointing": True},
    "optimizer": {"optimizer": "AdamW8bit"},
    "text left alone": {"tokens": 0},
    "text cached": {"tokens": 0, "text_there": False},
    "lokr": {"network": rows("lokr factor=4", 4)},
    "fewer layers": {"network": rows()[:20]},
}


@pytest.mark.parametrize("more", MORE)
def test_more_takes_more(more: str) -> None:
    assert gib(replace(LOAD, **MORE[more])) > gib(LOAD)


@pytest.mark.parametrize("less", LESS)
def test_less_takes_less(less: str) -> None:
    assert gib(replace(LOAD, **LESS[less])) < gib(LOAD)


def test_rows_that_hold_the_network_to_the_base_take_what_a_batch_twice_as_large_does() -> None:
    assert gib(replace(LOAD, joined=True)) == gib(replace(LOAD, batch=2 * LOAD.batch))


def test_weights_are_those_that_are_loaded() -> None:
    base = load_base(BASE)
    modules = (base.denoiser, *base.text_encoders)
    counted = sum(p.numel() for module in modules for p in module.parameters())
    said = predict(*shapes_of(outlined()), replace(LOAD, weight_bytes=4)).weights / 4
    assert said == pytest.approx(counted, rel=0.001)


# Algorithms in the words of the command line, and rank.
KINDS: dict[str, tuple[str, int]] = {
    "lora": ("lora", 16),
    "norms": ("lora train_norm=True", 16),
    "locon": ("locon", 8),
    "convolutions alone": ("locon preset=unet-convblock-only", 8),
    "tucker": ("locon use_tucker=True", 8),
    "dora": ("lora dora_wd=True", 16),
    "dora by outputs": ("lora dora_wd=True wd_on_output=True", 16),
    "dylora": ("dylora unit=4", 16),
    "lora_fa": ("lora_fa", 16),
    "loha": ("loha", 4),
    "loha, dense": ("loha", 16),
    "lokr": ("lokr factor=4", 4),
    "lokr, whole": ("lokr factor=4 full_matrix=True", 4),
    "ia3": ("ia3", 16),
    "full": ("full preset=full train_norm=True", 16),
    "oft": ("oft", 8),
    "boft": ("boft", 8),
}


@pytest.fixture(scope="module")
def real() -> Any:
    family = open_family(load_base(BASE), device="cpu", dtype=torch.float32)
    for root in family.parts.values():
        root.requires_grad_(False)
    return family


@pytest.mark.parametrize("name", KINDS)
def test_what_a_network_has_is_what_is_counted(name: str, real: Any) -> None:
    """Parameters, gradients and optimizer state of a real network, in bytes."""
    choice = chosen(real, *KINDS[name])
    network = attach(real.parts.values(), choice.targets, choice.plan)
    try:
        values = [group.parameter for group in network.groups.values()]
        optimizer = torch.optim.AdamW(values)
        optimizer.step()
        kept = [*values, *(value.grad for value in values)]
        kept += [t for row in optimizer.state.values() for t in row.values() if t.numel() > 1]
        kept += [getattr(a, role) for a in network.adapters.values() for role in a.frozen]
        there = sum(tensor.numel() * tensor.element_size() for tensor in kept)
        counted = [replace(row, copies=0) for row in rows(*KINDS[name])]
        assert network_bytes(replace(LOAD, network=counted)) == there
        assert len(counted) == len(network.adapters)
    finally:
        detach(real.parts.values())


@pytest.mark.parametrize("name", KINDS)
def test_what_is_kept_for_the_backward_pass_is_what_is_counted(name: str) -> None:
    """Of fused blocks, in bytes that autograd holds after a forward pass."""
    family = open_family(load_base(BASE), device="cpu", dtype=torch.bfloat16)
    root = family.denoiser.requires_grad_(False)
    choice = chosen(family, *KINDS[name])
    targets = [target for target in choice.targets if target.part == "unet"]
    plan = replace(
        choice.plan, sizes={n: s for n, s in choice.plan.sizes.items() if n.startswith("lora_unet")}
    )
    network = attach([root], targets, plan)
    network.train()
    fuse(root).refresh()
    frozen = {value.untyped_storage().data_ptr() for value in (*root.parameters(), *root.buffers())}
    held: dict[int, Any] = {}

    def save(tensor: Any) -> Any:
        place = tensor.untyped_storage().data_ptr()
        if place not in frozen:
            held[place] = tensor
        return tensor

    side, tokens = 32, 77
    text = torch.randn(1, tokens, root.config.cross_attention_dim, dtype=torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        network.begin()
        out = root(
            torch.randn(1, 4, side, side, dtype=torch.bfloat16), torch.tensor([7]), text, return_dict=False
        )
    there = sum(tensor.untyped_storage().nbytes() for tensor in held.values())
    there += sum(work.bytes for work in network.together)
    assert out[0].requires_grad
    unet = [row for row in rows(*KINDS[name]) if row.part == "unet"]
    load = Load(side * 8, side * 8, 1, unet)
    said = predict(*shapes_of(outlined()), load).activations
    assert said == pytest.approx(there, rel=0.12)


def test_blocks_and_files_are_counted_too(tmp_path: Path) -> None:
    """Layers that blocks leave out are not counted; those of a file are what it has."""
    settings = settings_of(tmp_path, network_dim="8")
    dataset = scan(settings.data, 0)
    whole = load_of(settings, read_network_args(settings.network), dataset, outlined())
    words = ("block_dims=" + ",".join(["0"] * 12 + ["8"] + ["0"] * 12),)
    some = replace(settings, network=replace(settings.network, network_args=words))
    less = load_of(some, read_network_args(some.network), dataset, outlined())
    assert {row.path.split(".")[0] for row in less.network if row.part == "unet"} == {"mid_block"}
    assert len(less.network) < len(whole.network)
    unet = replace(settings, network=replace(settings.network, network_train_unet_only=True))
    alone = load_of(unet, read_network_args(unet.network), dataset, outlined())
    assert {row.part for row in alone.network} == {"unet"}
    assert (alone.tokens, alone.context) == (0, whole.tokens)


def test_what_cannot_fit_is_refused_with_what_to_change(tmp_path: Path) -> None:
    draw_concept(tmp_path, TRIGGER, pictures=2, repeats=1, seed=1)
    flags = {"train_data_dir": str(tmp_path), "resolution": "512", "train_batch_size": "4"}
    model, data, network, optimizer, loss, run = build_settings(PARTS, flags)[0]
    settings = TrainSettings(model=model, data=data, network=network, optimizer=optimizer, loss=loss, run=run)
    dataset = scan(settings.data, 0)
    args = read_network_args(settings.network)
    line = memory_line(settings, args, dataset, BASE, torch.bfloat16, 80 * GIB)
    assert line.endswith("of 80.0 GiB that are free")
    with pytest.raises(ConfigError) as caught:
        memory_line(settings, args, dataset, BASE, torch.bfloat16, 0.4 * GIB)
    told = str(caught.value)
    assert "and 0.4 GiB of the card are free; --gradient_checkpointing: " in told
    assert "--train_batch_size 1 --gradient_accumulation_steps 4" in told
    assert "\n" not in told


def settings_of(folder: Path, **flags: str) -> TrainSettings:
    draw_concept(folder, TRIGGER, pictures=2, repeats=1, seed=1)
    given = {
        "train_data_dir": str(folder),
        "pretrained_model_name_or_path": BASE,
        "resolution": "512",
        **flags,
    }
    model, data, network, optimizer, loss, run = build_settings(PARTS, given)[0]
    return TrainSettings(model=model, data=data, network=network, optimizer=optimizer, loss=loss, run=run)


@pytest.mark.parametrize(
    ("flags", "like"),
    [
        ({"preserve": f"trigger={TRIGGER}"}, {"joined": True}),
        ({"preserve": f"trigger={TRIGGER}", "preserve_apart": "true"}, {}),
        ({"ema_decay": "0.9"}, {"averaged": True}),
        ({"ema_width": "0.1"}, {"averaged": True}),
        ({"early_stop": "2", "validation_split": "0.5"}, {}),
        ({"early_stop": "2", "early_stop_by": "figures"}, {}),
        ({"flow_model": "true", "timestep_sampling": "shift"}, {}),
        ({"timestep_curve": "0:1 1000:1"}, {}),
    ],
)
def test_what_a_way_to_learn_adds_to_the_forecast(
    flags: dict[str, str], like: dict[str, bool], tmp_path: Path
) -> None:
    plain, settings = (settings_of(tmp_path, **one) for one in ({}, flags))
    dataset = scan(plain.data, 0)
    loads = [load_of(one, read_network_args(one.network), dataset, outlined()) for one in (plain, settings)]
    assert replace(loads[1], network=()) == replace(loads[0], network=(), **like)


def test_the_memory_of_a_slider_is_not_told(tmp_path: Path) -> None:
    """Its blocks are not fused, which is what is counted; and no way to save would be one that it takes."""
    settings = settings_of(tmp_path)
    slider = replace(
        settings, data=replace(settings.data, train_data_dir=None, slider=tmp_path / "pairs.toml")
    )
    (tmp_path / "pairs.toml").write_text('[[pairs]]\npositive = "smile"\n')
    line = memory_line(
        slider, read_network_args(slider.network), scan(settings.data, 0), BASE, torch.bfloat16, GIB
    )
    assert line == "memory: not known for a slider; the run begins without a forecast"
    with pytest.raises(ConfigError, match="the memory of a slider is not known; leave it out"):
        find_options(slider, torch.bfloat16, 8.0, ())


def test_a_card_gets_the_cheapest_options_that_fit(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, train_batch_size="4")
    whole, needed = find_options(settings, torch.bfloat16, 80.0, ())
    assert whole == {}
    one, less = find_options(settings, torch.bfloat16, needed - 0.01, ())
    assert one == {"gradient_checkpointing": True}
    assert less < needed
    two, least = find_options(settings, torch.bfloat16, less - 0.01, ())
    assert two == {**one, "train_batch_size": 1, "gradient_accumulation_steps": 4}
    assert least < less
    # What the user gave stays as it is.
    other, _ = find_options(settings, torch.bfloat16, needed - 0.01, {"gradient_checkpointing"})
    assert "gradient_checkpointing" not in other
    assert other
    with pytest.raises(ConfigError, match=r"even with gradient_checkpointing.* take a smaller resolution"):
        find_options(settings, torch.bfloat16, 0.3, ())


def test_the_command_line_prints_what_the_card_got(tmp_path: Path) -> None:
    draw_concept(tmp_path / "data", TRIGGER, pictures=2, repeats=1, seed=1)
    code = "from lorapipe_engine.cli import train_main; train_main()"
    words = ["--base", "demo", "--train_data_dir", str(tmp_path / "data"), "--resolution", "2048"]
    words += ["--train_batch_size", "4", "--vram", "8", "--print_config"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "a card of 8 GiB: gradient_checkpointing on; about " in done.stderr
    assert "(from vram = 8)\ngradient_checkpointing = true" in done.stdout
    # And it can be fed back.
    config = tmp_path / "run.toml"
    config.write_text(done.stdout)
    again = subprocess.run(
        [sys.executable, "-c", code, "--config_file", str(config), "--print_config"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert "gradient_checkpointing = true" in again.stdout
