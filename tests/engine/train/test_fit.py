"""Memory that is known before a base is loaded: what makes it more and less, and the refusal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("lorapipe_demo")

from lorapipe_demo.concept import draw_concept  # noqa: E402
from lorapipe_demo.scene import TRIGGER  # noqa: E402
from lorapipe_engine.bases import resolve_base  # noqa: E402
from lorapipe_engine.config import build_settings  # noqa: E402
from lorapipe_engine.errors import ConfigError  # noqa: E402
from lorapipe_engine.settings import PARTS, TrainSettings  # noqa: E402
from lorapipe_engine.train.data import scan  # noqa: E402
from lorapipe_engine.train.fit import memory_line, shapes_of  # noqa: E402
from lorapipe_engine.train.load import load_base  # noqa: E402
from lorapipe_engine.train.memory import GIB, Load, predict  # noqa: E402

BASE = str(resolve_base("demo"))
LOAD = Load(512, 512, 2, 16, tokens=77, text_there=True)


def gib(load: Load) -> float:
    return predict(*shapes_of(BASE, torch.bfloat16), load).gib


@pytest.mark.parametrize(
    "more",
    [
        *({"width": 576}, {"height": 768}, {"batch": 3}, {"rank": 32}, {"weight_bytes": 4}, {"tokens": 154}),
        {"latents": 1e6},
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


def test_weights_are_those_that_are_loaded() -> None:
    base = load_base(BASE)
    modules = (base.unet, *base.text_encoders)
    counted = sum(p.numel() for module in modules for p in module.parameters())
    said = predict(*shapes_of(BASE, torch.float32), replace(LOAD, weight_bytes=4)).weights / 4
    assert said == pytest.approx(counted, rel=0.001)


def test_what_cannot_fit_is_refused_with_what_to_change(tmp_path: Path) -> None:
    draw_concept(tmp_path, TRIGGER, pictures=2, repeats=1, seed=1)
    flags = {"train_data_dir": str(tmp_path), "resolution": "512", "train_batch_size": "4"}
    model, data, network, optimizer, loss, run = build_settings(PARTS, flags)[0]
    settings = TrainSettings(model=model, data=data, network=network, optimizer=optimizer, loss=loss, run=run)
    dataset = scan(settings.data, 0)
    line = memory_line(settings, dataset, BASE, torch.bfloat16, 80 * GIB)
    assert line.endswith("of 80.0 GiB that are free")
    with pytest.raises(ConfigError) as caught:
        memory_line(settings, dataset, BASE, torch.bfloat16, 0.4 * GIB)
    told = str(caught.value)
    assert "and 0.4 GiB of the card are free; --gradient_checkpointing: " in told
    assert "--train_batch_size 1 --gradient_accumulation_steps 4" in told
    assert "\n" not in told
