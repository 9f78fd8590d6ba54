"""Schedules as LoRA_Easy_Training_Scripts saves them."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torch")

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings import OptimizerSettings
from lorapipe_engine.train.schedules import rate_multiplier, schedule_of


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("RexAnnealingWarmRestarts", 0.0625 / (0.1 + 0.9 * 0.0625)),
        ("CustomOptimizers.CosineAnnealingWarmupRestarts", 0.5 * (1 + math.cos(math.pi * 15 / 16))),
    ],
)
def test_cycles_and_warm_up_that_a_gui_works_out_when_it_starts(name: str, last: float) -> None:
    """Its saved files have the number of cycles and a share of the run: of 40 steps in 2 cycles with a warm-up of 20 %,
    each cycle has 20 steps and rises over 4; at its last step 15 of 16 are past."""
    optimizer = OptimizerSettings(
        lr_scheduler_type=f"LoraEasyCustomOptimizer.{name}",
        lr_scheduler_args=("min_lr=0", "gamma=0.5"),
        lr_scheduler_num_cycles=2,
        lr_warmup_steps="0.2",
    )
    rates = rate_multiplier(schedule_of(optimizer, 40, 1e-4))
    rise = [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [rates(step) for step in range(5)] == pytest.approx(rise)
    assert [rates(20 + step) for step in range(5)] == pytest.approx([value / 2 for value in rise])
    assert rates(19) == pytest.approx(last)


def test_a_class_of_a_gui_alone_is_never_sought_in_the_index() -> None:
    optimizer = OptimizerSettings(lr_scheduler_type="LoraEasyCustomOptimizer.other.Other")
    with pytest.raises(ConfigError, match="LoRA_Easy_Training_Scripts alone"):
        schedule_of(optimizer, 8, 1e-4)
