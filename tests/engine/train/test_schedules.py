"""Curves of the learning rate against transformers', diffusers' and torch's own, and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
optimization = pytest.importorskip("transformers.optimization")

from lorapipe_engine.errors import ConfigError, MissingExtra  # noqa: E402
from lorapipe_engine.settings import OptimizerSettings  # noqa: E402
from lorapipe_engine.train.schedules import (  # noqa: E402
    CURVES,
    ScheduleSettings,
    length_notes,
    rate_multiplier,
    rate_plan,
    schedule_notes,
    schedule_of,
    warmup_steps,
)
from lorapipe_engine.train.schedules.updates import plan_updates  # noqa: E402

TOTAL = 100
PLAIN = [name for name, kind in CURVES.items() if kind.warms_up and not name.endswith("warm_restarts")]


def values(settings: ScheduleSettings, total: int = TOTAL) -> list[float]:
    curve = rate_multiplier(settings)
    return [curve(step) for step in range(total)]


def theirs(make: Callable[..., Any], **arguments: Any) -> list[float]:
    """The factors that another package's schedule gives a rate of 0.01."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = make(optimizer, **arguments)
    found = []
    for _ in range(TOTAL):
        found.append(optimizer.param_groups[0]["lr"] / 0.01)
        optimizer.step()
        schedule.step()
    return found


# ------------------------------------------------------------------------------------- the field's curves


ORACLES: list[tuple[ScheduleSettings, str, dict[str, Any]]] = [
    (ScheduleSettings(name="linear", total=TOTAL, warmup=10), "get_linear_schedule_with_warmup", {}),
    (ScheduleSettings(name="cosine", total=TOTAL, warmup=10), "get_cosine_schedule_with_warmup", {}),
    (
        ScheduleSettings(name="cosine_with_restarts", total=TOTAL, warmup=10, cycles=4),
        "get_cosine_with_hard_restarts_schedule_with_warmup",
        {"num_cycles": 4},
    ),
    (
        ScheduleSettings(name="polynomial", total=TOTAL, warmup=10, power=0.75, base=0.01),
        "get_polynomial_decay_schedule_with_warmup",
        {"power": 0.75},
    ),
    (
        ScheduleSettings(name="cosine_with_min_lr", total=TOTAL, warmup=10, cycles=3, min_ratio=0.1),
        "get_cosine_with_min_lr_schedule_with_warmup",
        {"num_cycles": 1.5, "min_lr_rate": 0.1},
    ),
    (
        ScheduleSettings(name="warmup_stable_decay", total=TOTAL, warmup=10, decay=30, min_ratio=0.1),
        "get_wsd_schedule",
        {"num_decay_steps": 30, "min_lr_ratio": 0.1},
    ),
]


@pytest.mark.parametrize(("settings", "make", "arguments"), ORACLES, ids=[row[0].name for row in ORACLES])
def test_curves_are_those_of_transformers(
    settings: ScheduleSettings, make: str, arguments: dict[str, Any]
) -> None:
    expected = theirs(getattr(optimization, make), num_warmup_steps=10, num_training_steps=TOTAL, **arguments)
    assert values(settings) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("timescale", [None, 25])
def test_inverse_square_root_is_that_of_transformers(timescale: int | None) -> None:
    expected = theirs(optimization.get_inverse_sqrt_schedule, num_warmup_steps=10, timescale=timescale)
    found = values(ScheduleSettings(name="inverse_sqrt", total=TOTAL, warmup=10, timescale=timescale))
    assert found == pytest.approx(expected)


def test_piecewise_constant_is_that_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers.optimization")
    rules = "1:10,0.1:20,0.01:30,0.005"
    expected = theirs(diffusers.get_piecewise_constant_schedule, step_rules=rules)
    found = ScheduleSettings(name="piecewise_constant", total=TOTAL, arguments={"step_rules": rules})
    assert values(found) == pytest.approx(expected)


@pytest.mark.parametrize("name", PLAIN)
def test_curves_rise_over_the_warm_up_and_stay_in_range(name: str) -> None:
    found = values(ScheduleSettings(name=name, total=100, warmup=10, cycles=4, base=1e-4, decay=20))
    assert found[:10] == pytest.approx([step / 10 for step in range(10)])
    assert found[10] == 1.0
    assert all(0 <= value <= 1 for value in found)


def test_cosine_with_four_cycles_has_three_restarts() -> None:
    found = values(ScheduleSettings(name="cosine_with_restarts", total=400, cycles=4), 400)
    assert sum(b > a + 0.5 for a, b in pairwise(found)) == 3


def test_a_power_under_one_keeps_the_rate_high() -> None:
    low = values(ScheduleSettings(name="polynomial", total=100, power=0.5, base=1e-4))
    high = values(ScheduleSettings(name="polynomial", total=100, power=2.0, base=1e-4))
    assert low[50] > 0.7 > 0.3 > high[50]


def test_rex_without_bend_is_linear() -> None:
    bent = values(ScheduleSettings(name="rex", total=100, arguments={"d": 0.9}))
    straight = values(ScheduleSettings(name="rex", total=100, arguments={"d": 0}))
    assert straight == pytest.approx(values(ScheduleSettings(name="linear", total=100)))
    assert bent[50] == pytest.approx(0.5 / (0.1 + 0.45))


# ------------------------------------------------------------------------------------------- warm restarts


GUIDE = {"T_0": 400, "gamma_min_lr": 0.99915, "down_factor": 0.5, "decay": 1, "cycle_warmup": 40}


def test_warm_restarts_of_the_guide() -> None:
    settings = ScheduleSettings(name="cosine_warm_restarts", total=1600, warmup=80, arguments=GUIDE)
    found = values(settings, 1600)
    # Peaks and valleys of the scheduler that the guide installs, read off a run of it.
    assert [found[t] for t in (80, 520, 920, 1320)] == pytest.approx([1, 0.688, 0.490, 0.348], abs=1e-3)
    assert [found[t] for t in (480, 880, 1280)] == pytest.approx([0.356, 0.253, 0.180], abs=1e-3)
    assert max(abs(b - a) for a, b in pairwise(found[80:])) < 0.02


def test_warm_restarts_can_be_hard_ones() -> None:
    hard = ScheduleSettings(name="cosine_warm_restarts", total=400, cycles=4)
    plain = ScheduleSettings(name="cosine_with_restarts", total=400, cycles=4)
    assert values(hard, 400) == pytest.approx(values(plain, 400), abs=1e-9)


def test_half_life_and_decay_lower_the_peaks() -> None:
    arguments = {"T_0": 50, "half_life": 100, "decay": 0.8}
    found = values(ScheduleSettings(name="cosine_warm_restarts", total=200, arguments=arguments), 200)
    assert found[100] == pytest.approx(0.5 * 0.8**2)


def test_an_absolute_floor_holds() -> None:
    arguments = {"T_0": 50, "min_lr": 2e-5}
    settings = ScheduleSettings(name="cosine_warm_restarts", total=200, base=1e-4, arguments=arguments)
    assert min(values(settings, 200)) == pytest.approx(0.2)


@given(
    st.integers(2, 400),
    st.floats(1, 3),
    st.integers(0, 30),
    st.floats(0.3, 1),
    st.floats(0, 1),
    st.integers(0, 2000),
)
def test_warm_restarts_stay_between_floor_and_peak(
    length: int, growth: float, ramp: int, decay: float, down: float, step: int
) -> None:
    ramp = min(ramp, length - 1)
    arguments = {
        "T_0": length,
        "T_mult": growth,
        "cycle_warmup": ramp,
        "decay": decay,
        "down_factor": down,
    }
    curve = rate_multiplier(ScheduleSettings(name="cosine_warm_restarts", total=2001, arguments=arguments))
    assert 0 <= curve(step) <= 1 + 1e-12


class CosineAnnealingWarmupRestarts:
    """The class of that name as its users know it, written from its description: a counter of the position in the
    cycle, lengths that grow on the part after the ramp."""

    def __init__(self, first: int, mult: float, top: float, low: float, ramp: int, gamma: float) -> None:
        self.base, self.low, self.gamma = top, low, gamma
        self.length, self.mult, self.ramp = first, mult, ramp
        self.position, self.cycle = 0, 0

    def rate(self) -> float:
        top = self.base * self.gamma**self.cycle
        if self.position < self.ramp:
            return (top - self.low) * self.position / self.ramp + self.low
        share = (self.position - self.ramp) / (self.length - self.ramp)
        return self.low + (top - self.low) * (1 + math.cos(math.pi * share)) / 2

    def step(self) -> None:
        self.position += 1
        if self.position >= self.length:
            self.cycle += 1
            self.position = 0
            self.length = int((self.length - self.ramp) * self.mult) + self.ramp


@pytest.mark.parametrize("mult", [1.0, 1.5])
def test_the_classic_restarts(mult: float) -> None:
    theirs = CosineAnnealingWarmupRestarts(60, mult, 1e-4, 1e-6, 12, 0.7)
    optimizer = OptimizerSettings(
        lr_scheduler_type="cosine_annealing_warmup.CosineAnnealingWarmupRestarts",
        lr_scheduler_args=(
            "first_cycle_steps=60",
            f"cycle_mult={mult}",
            "max_lr=1e-4",
            "min_lr=1e-6",
            "warmup_steps=12",
            "gamma=0.7",
        ),
    )
    rates = rate_plan(schedule_of(optimizer, 300, 1e-4), [1e-4, 5e-5])
    for step in range(300):
        own, half = rates(step)
        assert own == pytest.approx(theirs.rate(), rel=1e-9)
        assert half == pytest.approx(own / 2)
        theirs.step()


def test_the_guides_class_is_built_in() -> None:
    optimizer = OptimizerSettings(
        lr_scheduler_type="cosine_annealing_warmup.CosineAnnealingWarmupRestarts",
        lr_scheduler_args=(
            "T_0=549",
            "gamma_min_lr=0.99915",
            "decay=1",
            "down_factor=0.5",
            "warmup_steps=100",
            "cycle_warmup=50",
            "init_lr_ground=True",
        ),
    )
    curve = rate_multiplier(schedule_of(optimizer, 2196, 1e-4))
    # From 0 to 1 over the warm-up, from which cycles are counted.
    assert (curve(0), curve(50), curve(100)) == (0.0, 0.5, 1.0)
    assert curve(100 + 549) == pytest.approx(0.5 * 0.99915**549)
    assert curve(100 + 549 + 50) == pytest.approx(0.99915**599)


def test_the_ground_is_one_step_without_a_warm_up() -> None:
    arguments = {"T_0": 50, "init_lr_ground": True}
    curve = rate_multiplier(ScheduleSettings(name="cosine_warm_restarts", total=100, arguments=arguments))
    assert curve(0) == 0.0
    assert curve(1) > 0.99


@pytest.mark.parametrize("more", ["down_factor=0.3", "down_factor=0", "T_mult=2"])
def test_the_guides_class_is_refused_where_its_curve_jumps(more: str) -> None:
    words = {"down_factor": "0.5", "T_0": "100", "cycle_warmup": "10", **dict([more.split("=")])}
    given = tuple(f"{name}={value}" for name, value in words.items())
    by_class = OptimizerSettings(
        lr_scheduler_type="cosine_annealing_warmup.CosineAnnealingWarmupRestarts", lr_scheduler_args=given
    )
    with pytest.raises(ConfigError, match="cosine_warm_restarts, whose ramps end at the peak"):
        schedule_of(by_class, 400, 1e-4)
    ours = OptimizerSettings(lr_scheduler="cosine_warm_restarts", lr_scheduler_args=given)
    assert rate_multiplier(schedule_of(ours, 400, 1e-4))(399) > 0


# ------------------------------------------------------------------------------------------------ classes


def test_a_class_of_torch_gives_its_own_rates() -> None:
    optimizer = OptimizerSettings(lr_scheduler_type="StepLR", lr_scheduler_args=("step_size=10", "gamma=0.5"))
    rates = rate_plan(schedule_of(optimizer, 30, 1e-3), [1e-3, 2e-3])
    assert rates(0) == pytest.approx([1e-3, 2e-3])
    assert rates(19) == pytest.approx([5e-4, 1e-3])
    assert rates(20) == pytest.approx([2.5e-4, 5e-4])
    assert rates(20) == rates(20)


def test_one_cycle_changes_rates_only() -> None:
    optimizer = OptimizerSettings(
        lr_scheduler_type="torch.optim.lr_scheduler.OneCycleLR",
        lr_scheduler_args=("max_lr=0.01", "total_steps=51"),
    )
    rates = rate_plan(schedule_of(optimizer, 50, 1e-3), [1e-3])
    assert max(rates(step)[0] for step in range(50)) == pytest.approx(0.01, rel=2e-3)


def test_classes_of_other_packages() -> None:
    pytest.importorskip("pytorch_optimizer")
    optimizer = OptimizerSettings(
        lr_scheduler_type="pytorch_optimizer.CosineAnnealingWarmupRestarts",
        lr_scheduler_args=("first_cycle_steps=20", "max_lr=1e-3", "warmup_steps=5"),
    )
    rates = rate_plan(schedule_of(optimizer, 40, 1e-3), [1e-3])
    assert rates(5)[0] == pytest.approx(1e-3)


# ------------------------------------------------------------------------------------------------ choices


@pytest.mark.parametrize(
    ("optimizer", "curve"),
    [
        (OptimizerSettings(), ("cosine", 50)),
        (OptimizerSettings(optimizer_type="Prodigy"), ("constant", 0)),
        (OptimizerSettings(optimizer_type="DAdaptAdam", lr_scheduler="cosine"), ("cosine", 50)),
        (OptimizerSettings(optimizer_type="AdaFactor"), ("adafactor", 0)),
        (OptimizerSettings(optimizer_type="AdaFactor", lr_scheduler="adafactor:1e-3"), ("adafactor", 0)),
        (
            OptimizerSettings(optimizer_type="AdaFactor", optimizer_args=("relative_step=False",)),
            ("constant_with_warmup", 50),
        ),
        (OptimizerSettings(lr_scheduler="linear", lr_warmup_steps="10%"), ("linear", 100)),
        (OptimizerSettings(lr_scheduler="cosine", lr_warmup_steps="30"), ("cosine", 30)),
        (OptimizerSettings(lr_scheduler="cosine-warm-restarts"), ("cosine_warm_restarts", 50)),
    ],
)
def test_the_curve_that_suits(optimizer: OptimizerSettings, curve: tuple[str, int]) -> None:
    found = schedule_of(optimizer, 1000, 1e-4)
    assert (found.name, found.warmup) == curve


def test_a_curve_that_is_not_used_is_named() -> None:
    assert schedule_notes(OptimizerSettings(lr_scheduler="cosine")) == []
    (note,) = schedule_notes(OptimizerSettings(optimizer_type="AdaFactor", lr_scheduler="cosine"))
    assert "cosine" in note
    assert "AdaFactor" in note


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"lr_scheduler_num_cycles": 3.0},
            "lr_scheduler_num_cycles 3.0 does nothing with lr_scheduler cosine",
        ),
        (
            {"lr_scheduler_power": 2.0},
            "lr_scheduler_power 2.0 does nothing with lr_scheduler cosine, only with poly",
        ),
        ({"lr_scheduler_timescale": 9}, "lr_scheduler_timescale 9 does nothing"),
        ({"lr_scheduler_min_lr_ratio": 0.1}, "lr_scheduler_min_lr_ratio 0.1 does nothing"),
        ({"lr_decay_steps": "20%"}, "lr_decay_steps 20% does nothing"),
        ({"lr_scheduler": "cosine_with_restarts", "lr_scheduler_num_cycles": 3.0}, ""),
        ({"lr_scheduler": "polynomial", "lr_scheduler_power": 2.0}, ""),
        (
            {"lr_scheduler_type": "StepLR", "lr_scheduler_args": ("step_size=3",), "lr_scheduler_power": 2.0},
            "StepLR",
        ),
        ({"lr_scheduler_min_lr_ratio": 0.0, "lr_decay_steps": "0", "lr_scheduler_power": 1.0}, ""),
    ],
)
def test_an_option_of_another_curve_is_named(options: dict[str, Any], told: str) -> None:
    notes = schedule_notes(OptimizerSettings(**{"lr_scheduler": "cosine", **options}))
    assert len(notes) == bool(told)
    assert told in "".join(notes)


@pytest.mark.parametrize(
    ("value", "steps"), [("0.05", 50), (0.1, 100), ("100", 100), ("10%", 100), (0, 0), ("0.5%", 5)]
)
def test_warm_up_in_steps_or_as_a_share(value: float | str, steps: int) -> None:
    assert warmup_steps(value, 1000) == steps


@pytest.mark.parametrize("value", ["ten", "-1", "1.5", "120%", "nan", "inf"])
def test_warm_up_that_is_neither(value: str) -> None:
    with pytest.raises(ConfigError, match="lr_warmup_steps"):
        warmup_steps(value, 1000)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (ScheduleSettings(name="cosin", total=10), "cosine"),
        (ScheduleSettings(name="constant", total=10, warmup=2), "has no warm-up; leave it out"),
        (ScheduleSettings(name="reduce_lr_on_plateau", total=10), "loss"),
        (ScheduleSettings(name="rex", total=10, arguments={"d": 1.0}), "not in 0..1"),
        (ScheduleSettings(name="cosine", total=10, arguments={"T_0": 5}), "takes none"),
        (ScheduleSettings(name="polynomial", total=10, base=1e-9), "1e-7"),
        (ScheduleSettings(name="warmup_stable_decay", total=10, decay=11), "lr_decay_steps"),
        (ScheduleSettings(name="piecewise_constant", total=10), "step_rules"),
        (
            ScheduleSettings(
                name="piecewise_constant", total=10, arguments={"step_rules": ("1:5", "0.5:3", 0.1)}
            ),
            "rise",
        ),
        (ScheduleSettings(name="cosine_warm_restarts", total=10, arguments={"T_0": "x"}), "number"),
        (ScheduleSettings(name="cosine_warm_restarts", total=10, arguments={"T0": 4}), "did you mean T_0"),
        (
            ScheduleSettings(name="cosine_warm_restarts", total=10, arguments={"T_0": 4, "cycle_warmup": 4}),
            "as long as a cycle",
        ),
        (ScheduleSettings(name="cosine_warm_restarts", total=9, arguments={"T_0": 4, "cycles": 2}), "both"),
        (ScheduleSettings(name="cosine_annealing_warmup_restarts", total=10), "first_cycle_steps"),
    ],
)
def test_impossible_schedules(settings: ScheduleSettings, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        rate_multiplier(settings)


@pytest.mark.parametrize(
    ("name", "arguments", "word"),
    [
        ("StepLR", ("step_sise=3",), "did you mean step_size"),
        ("StepLR", (), "step_size="),
        ("StepLR", ("step_size=3", "gamma=fast"), "number"),
        ("StepLRR", (), "StepLR"),
        ("ReduceLROnPlateau", (), "loss"),
        ("OneCycleLR", ("max_lr=0.1", "total_steps=5"), "steps"),
        ("CyclicLR", ("base_lr=0.1", "max_lr=1.0", "cycle_momentum=True"), "cycle_momentum"),
        ("torch.optim.AdamW", (), "lr_scheduler_type"),
    ],
)
def test_impossible_classes(name: str, arguments: tuple[str, ...], word: str) -> None:
    optimizer = OptimizerSettings(lr_scheduler_type=name, lr_scheduler_args=arguments)
    with pytest.raises(ConfigError, match=word):
        rate_plan(schedule_of(optimizer, 100, 1e-4), [1e-4])


def test_a_class_of_a_missing_package_names_it() -> None:
    optimizer = OptimizerSettings(lr_scheduler_type="no_such_package.Schedule")
    with pytest.raises(MissingExtra, match="by its own instructions"):
        rate_plan(schedule_of(optimizer, 100, 1e-4), [1e-4])


def test_adafactors_curve_needs_adafactor() -> None:
    with pytest.raises(ConfigError, match="AdaFactor"):
        schedule_of(OptimizerSettings(lr_scheduler="adafactor"), 100, 1e-4)


def test_a_warm_up_longer_than_the_run_is_all_of_it() -> None:
    schedule = ScheduleSettings(name="cosine", total=4, warmup=100)
    rates = rate_multiplier(schedule)
    assert [rates(step) for step in range(4)] == [0.0, 0.01, 0.02, 0.03]
    assert length_notes(schedule) == [
        "lr_warmup_steps 100 is as long as the run of 4 steps or longer: the rate only rises, to 3% of what it is to be"
    ]
    assert length_notes(ScheduleSettings(name="cosine", total=101, warmup=100)) == []


def test_constant_passes_over_a_warm_up_and_says_so() -> None:
    optimizer = OptimizerSettings(lr_scheduler="constant", lr_warmup_steps="10")
    schedule = schedule_of(optimizer, 100, 1e-4)
    assert (schedule.name, schedule.warmup, rate_multiplier(schedule)(0)) == ("constant", 0, 1.0)
    (note,) = schedule_notes(optimizer)
    assert note.startswith("lr_warmup_steps 10 is passed over")
    assert "constant_with_warmup has one" in note
    with pytest.raises(ConfigError, match="neither a count of steps nor a share"):
        schedule_of(OptimizerSettings(lr_scheduler="constant", lr_warmup_steps="ten"), 100, 1e-4)
    bare = OptimizerSettings(lr_scheduler="constant", lr_warmup_steps="0")
    assert (schedule_of(bare, 100, 1e-4).name, schedule_notes(bare)) == ("constant", [])


def test_rex_with_restarts() -> None:
    """λ by hand: cycles of 4 steps, d = 0.9: (1 - p) / (0.1 + 0.9 (1 - p)), each peak half of the one before."""
    optimizer = OptimizerSettings(
        lr_scheduler_type="LoraEasyCustomOptimizer.RexAnnealingWarmRestarts.RexAnnealingWarmRestarts",
        lr_scheduler_args=("min_lr=1e-5", "gamma=0.5", "d=0.9", "first_cycle_max_steps=4"),
    )
    rates = rate_multiplier(schedule_of(optimizer, 8, 1e-4))
    falling = [1.0, 0.75 / 0.775, 0.5 / 0.55, 0.25 / 0.325]
    wanted = [0.5**cycle * (0.1 + 0.9 * value) for cycle in (0, 1) for value in falling]
    assert [rates(step) for step in range(8)] == pytest.approx(wanted)


def test_text_encoders_may_stop_before_the_end() -> None:
    optimizer = OptimizerSettings(
        lr_scheduler="constant", learning_rate=1e-4, stop_text_encoder_training="50%"
    )
    plan = plan_updates(optimizer, ("te1", "unet"), 10)
    rates = plan.rates_at([1e-4, 1e-4], ["te1", "unet"])
    assert (rates(4), rates(5)) == ([1e-4, 1e-4], [0.0, 1e-4])
    with pytest.raises(ConfigError, match="moves values at a rate of 0 too"):
        plan_updates(replace(optimizer, optimizer_type="AdaFactor", learning_rate=None), ("te1", "unet"), 10)


def test_the_page_names_every_curve() -> None:
    page = (Path(__file__).parents[3] / "docs/optimizers.md").read_text(encoding="utf-8")
    assert [name for name in CURVES if f"`{name}`" not in page] == []
