"""Order of the pictures, length of the run, rates and curves."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from lorapipe_engine.errors import ConfigError
from lorapipe_engine.settings import OptimizerSettings, RunSettings
from lorapipe_engine.train.batches import batches_per_epoch, epoch_batches
from lorapipe_engine.train.numbering import stale_epoch, stale_step
from lorapipe_engine.train.optimizers import check_arguments, parse_arguments
from lorapipe_engine.train.plan import plan_run, rates_of
from lorapipe_engine.train.schedules import CURVES, ScheduleSettings, rate_multiplier

SIZES = st.sampled_from([(64, 64), (64, 128), (128, 64)])


@given(
    st.lists(st.tuples(SIZES, st.integers(1, 5)), min_size=1, max_size=20),
    st.integers(1, 6),
    st.integers(0, 5),
)
def test_an_epoch_holds_every_picture_as_often_as_it_repeats(
    rows: list[tuple[tuple[int, int], int]], batch: int, epoch: int
) -> None:
    buckets, repeats = [row[0] for row in rows], [row[1] for row in rows]
    batches = epoch_batches(buckets, repeats, batch, 7, epoch)
    seen = Counter((i, t) for b in batches for i, t in zip(b.pictures, b.turns, strict=True))
    assert seen == {(i, t): 1 for i, count in enumerate(repeats) for t in range(count)}
    assert all(buckets[i] == b.bucket for b in batches for i in b.pictures)
    assert len(batches) == batches_per_epoch(buckets, repeats, batch)
    assert batches == epoch_batches(buckets, repeats, batch, 7, epoch)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [b.pictures[0] for b in epoch_batches([(64, 64)] * 40, [1] * 40, 1, seed, epoch)]

    assert len({tuple(order(s, e)) for s in range(3) for e in range(3)}) == 9


def test_length_in_epochs_goes_before_steps() -> None:
    assert plan_run(10, RunSettings(max_train_epochs=3), 4).steps == 9
    found = plan_run(10, RunSettings(max_train_steps=7), 4)
    assert (found.steps, found.epochs) == (7, 3)


def test_rates() -> None:
    parts = ("te1", "unet")
    assert rates_of(OptimizerSettings(), parts).by_part == {"te1": 5e-5, "unet": 1e-4}
    assert rates_of(OptimizerSettings(learning_rate=2e-4), parts).by_part == {"te1": 2e-4, "unet": 2e-4}
    found = rates_of(OptimizerSettings(learning_rate=1e-4, text_encoder_lr=0.0), parts)
    assert found.by_part == {"te1": 0.0, "unet": 1e-4}


@pytest.mark.parametrize("name", [name for name in CURVES if name != "constant"])
def test_curves_rise_over_the_warm_up_and_stay_in_range(name: str) -> None:
    curve = rate_multiplier(ScheduleSettings(name=name, total=100, warmup=10, cycles=4, base=1e-4))
    values = [curve(step) for step in range(100)]
    assert values[:10] == pytest.approx([step / 10 for step in range(10)])
    assert values[10] == 1.0
    assert all(0 <= value <= 1 for value in values)


def test_cosine_with_four_cycles_has_three_restarts() -> None:
    curve = rate_multiplier(ScheduleSettings(name="cosine_with_restarts", total=400, cycles=4))
    values = [curve(step) for step in range(400)]
    assert sum(b > a + 0.5 for a, b in pairwise(values)) == 3


def test_cosine_is_half_way_in_the_middle() -> None:
    curve = rate_multiplier(ScheduleSettings(name="cosine", total=100))
    assert math.isclose(curve(50), 0.5)


def test_a_power_under_one_keeps_the_rate_high() -> None:
    low = rate_multiplier(ScheduleSettings(name="polynomial", total=100, power=0.5, base=1e-4))
    high = rate_multiplier(ScheduleSettings(name="polynomial", total=100, power=2.0, base=1e-4))
    assert low(50) > 0.7 > 0.3 > high(50)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (ScheduleSettings(name="cosin", total=10), "cosine"),
        (ScheduleSettings(name="constant", total=10, warmup=2), "constant_with_warmup"),
        (ScheduleSettings(name="cosine", total=10, warmup=10), "as long as the run"),
    ],
)
def test_impossible_schedules(settings: ScheduleSettings, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        rate_multiplier(settings)


def test_optimizer_arguments() -> None:
    assert parse_arguments(["betas=.9,.99", "decouple=True", "name=x=y"]) == {
        "betas": (0.9, 0.99),
        "decouple": True,
        "name": "x=y",
    }
    assert check_arguments("adamw", ["weight_decay=0.1"])["weight_decay"] == 0.1
    with pytest.raises(ConfigError, match="weight_decay"):
        check_arguments("AdamW", ["weight_decy=0.1"])
    with pytest.raises(ConfigError, match="adamw"):
        check_arguments("AdamV", [])


def test_older_files_to_remove() -> None:
    assert [stale_epoch(e, 2, 2) for e in (2, 4, 6, 8)] == [None, None, 2, 4]
    assert stale_step(300, 100, 150) == 100
    assert stale_step(100, 100, None) is None
