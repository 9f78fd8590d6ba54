"""Memory that is known before a base is loaded: what makes it more and less, and the refusal."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("lorapipe_demo")

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_demo.scene import TRIGGER  # noqa: E402
from lorapipe_engine.command.options import build_settings  # noqa: E402
from lorapipe_engine.errors import ConfigError  # noqa: E402
from lorapipe_engine.models.bases import resolve_base  # noqa: E402
from lorapipe_engine.nn.attach import Kind  # noqa: E402
from lorapipe_engine.settings import PARTS, TrainSettings  # noqa: E402
from lorapipe_engine.train.base.load import load_base  # noqa: E402
from lorapipe_engine.train.data.examples import scan  # noqa: E402
from lorapipe_engine.train.memory.fit import load_of, memory_line, shapes_of  # noqa: E402
from lorapipe_engine.train.memory.model import GIB, Load, predict  # noqa: E402
from lorapipe_engine.train.memory.preset import find_options  # noqa: E402

BASE = str(resolve_base("demo"))
LOAD = Load(512, 512, 2, 16, tokens=77, text_there=True)


def gib(load: Load) -> float:
    return predict(*shapes_of(BASE, torch.bfloat16), load).gib


@pytest.mark.parametrize(
    "more",
    [
        *({"width": 576}, {"height": 768}, {"batch": 3}, {"rank": 32}, {"weight_bytes": 4}, {"tokens": 154}),
        *({"latents": 1e6}, {"joined": True}, {"averaged": True}),
    ],
)
def test_more_takes_more(more: dict[str, int]) -> None:
    assert gib(replace(LOAD, **more)) > gib(LOAD)


@pytest.mark.parametrize(
    "less",
    [{"checkpointing": True}, {"optimizer": "AdamW8bit"}, {"tokens": 0}, {"tokens": 0, "text_there": False}],
)
def test_less_takes_less(less: dict[str, int]) -> None:
    assert gib(replace(LOAD, **less)) < gib(LOAD)


def test_rows_that_hold_the_network_to_the_base_take_what_a_batch_twice_as_large_does() -> None:
    assert gib(replace(LOAD, joined=True)) == gib(replace(LOAD, batch=2 * LOAD.batch))


def test_weights_are_those_that_are_loaded() -> None:
    base = load_base(BASE)
    modules = (base.denoiser, *base.text_encoders)
    counted = sum(p.numel() for module in modules for p in module.parameters())
    said = predict(*shapes_of(BASE, torch.float32), replace(LOAD, weight_bytes=4)).weights / 4
    assert said == pytest.approx(counted, rel=0.001)


def test_what_cannot_fit_is_refused_with_what_to_change(tmp_path: Path) -> None:
    draw_concept(tmp_path, TRIGGER, pictures=2, repeats=1, seed=1)
    flags = {"train_data_dir": str(tmp_path), "resolution": "512", "train_batch_size": "4"}
    model, data, network, optimizer, loss, run = build_settings(PARTS, flags)[0]
    settings = TrainSettings(model=model, data=data, network=network, optimizer=optimizer, loss=loss, run=run)
    dataset = scan(settings.data, 0)
    line = memory_line(settings, Kind(), dataset, BASE, torch.bfloat16, 80 * GIB)
    assert line.endswith("of 80.0 GiB that are free")
    with pytest.raises(ConfigError) as caught:
        memory_line(settings, Kind(), dataset, BASE, torch.bfloat16, 0.4 * GIB)
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
    loads = [load_of(one, Kind(), dataset, torch.bfloat16, sdxl=False) for one in (plain, settings)]
    assert replace(loads[1], count=None) == replace(loads[0], count=None, **like)


def test_the_memory_of_a_slider_is_not_told(tmp_path: Path) -> None:
    """Its blocks are not fused, which is what is counted; and no way to save would be one that it takes."""
    settings = settings_of(tmp_path)
    slider = replace(
        settings, data=replace(settings.data, train_data_dir=None, slider=tmp_path / "pairs.toml")
    )
    (tmp_path / "pairs.toml").write_text('[[pairs]]\npositive = "smile"\n')
    line = memory_line(slider, Kind(), scan(settings.data, 0), BASE, torch.bfloat16, GIB)
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
